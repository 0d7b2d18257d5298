//! The commands `demo` and `up`: turn arguments into the node's options, run the mesh until Ctrl-C,
//! and print its events.

use std::io::{Write as _, stderr, stdout};
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use meltemi_cli::UpArgs;
use meltemi_node::{DialMap, Event, ImageMap, UpOptions};

/// Prints a line and ignores errors: the mesh keeps running when the reader closes the pipe (`|
/// grep -m1 ready`).
macro_rules! say {
    ($($words:tt)*) => { _ = writeln!(stdout(), $($words)*) };
}

/// Like `say`, to standard error.
macro_rules! complain {
    ($($words:tt)*) => { _ = writeln!(stderr(), $($words)*) };
}

const DEMO: &[(&str, &str)] = &[
    ("bookinfo.yaml", include_str!("../demo/bookinfo.yaml")),
    ("gateway.yaml", include_str!("../demo/gateway.yaml")),
];
const DEMO_IMAGES: &str = include_str!("../demo/images.yaml");

/// Runs Bookinfo, and the directories of `-f` if there are any.
pub(crate) fn demo(mesh: &str, run_dir: Option<PathBuf>, args: UpArgs) -> Result<i32> {
    let mut options = options(mesh, run_dir, args)?;
    options.embedded = DEMO
        .iter()
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
        .collect();

    options
        .images
        .push(ImageMap::parse("demo/images.yaml", DEMO_IMAGES)?);
    say!(
        "Bookinfo is starting: six workloads, each in a network namespace of its own with a sidecar beside it."
    );

    run(options, Some(mesh.to_owned()))
}

/// Runs the directories of `-f`.
pub(crate) fn up(mesh: &str, run_dir: Option<PathBuf>, args: UpArgs) -> Result<i32> {
    if args.dirs.is_empty() {
        bail!(
            "which configuration? Name a directory of YAML: meltemi up -f DIR (or try meltemi demo)"
        );
    }
    run(options(mesh, run_dir, args)?, None)
}

/// Validates the arguments and turns them into the node's options.
fn options(mesh: &str, run_dir: Option<PathBuf>, args: UpArgs) -> Result<UpOptions> {
    ensure!(
        !mesh.is_empty()
            && mesh
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'),
        "--mesh {mesh:?}: a mesh's name is of letters, digits, - and _"
    );

    let mut options = UpOptions::new(mesh);
    for dir in &args.dirs {
        ensure!(
            dir.is_dir(),
            "{} is not a directory: -f takes directories, which are watched",
            dir.display()
        );
    }

    options.dirs = args.dirs;
    options.image_files = args.images;
    if let Some(file) = &args.dial_map {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        options.dial_map = DialMap::parse(&text).with_context(|| format!("{}", file.display()))?;
    }

    options.run_dir = run_dir;
    options.state_dir = args.state_dir;
    options.publish_address = args.publish_address;
    options.publish = args.publish.into_iter().collect();
    options.gateways = !args.no_gateways;
    options.envoy = args.envoy;
    options.proxies = args.proxy;
    if let Some(lifetime) = args.certificate_lifetime {
        options.sidecar_args.extend([
            "--certificate-lifetime".to_owned(),
            format!("{}s", lifetime.as_secs_f64()),
        ]);
    }

    if args.plaintext_xds {
        options.control_args.push("--plaintext".to_owned());
    }
    if let Some(workers) = args.concurrency {
        options
            .sidecar_args
            .extend(["--concurrency".to_owned(), workers.to_string()]);
    }

    Ok(options)
}

/// Runs the mesh and prints its events. `demo` is the mesh's name if hints are to be printed.
fn run(mut options: UpOptions, demo: Option<String>) -> Result<i32> {
    let mut published: Vec<(u16, SocketAddr)> = Vec::new();
    let started = std::time::Instant::now();
    let mut was_ready = false;

    options.on_event = Box::new(move |event| match event {
        Event::Published { gateway, port } => {
            // A restarted node publishes its ports again: print each only once.
            if !published.contains(&(port.port, port.address)) {
                say!("{gateway} {port}");
                published.push((port.port, port.address));
            }
        }
        Event::AllReady if std::mem::replace(&mut was_ready, true) => say!("ready again"),
        Event::AllReady => {
            say!("ready after {:.1} s", started.elapsed().as_secs_f64());
            if let Some(mesh) = &demo {
                hints(mesh, &published);
            }
        }
        Event::Finding(text) => complain!("{text}"),
        Event::Warning(text) => complain!("warning: {text}"),
        // `up` returns this as its error.
        Event::Failed(_) => {}
        Event::NodeUp | Event::ControlUp | Event::WorkloadReady { .. } => {}
    });

    meltemi_node::up(options)?;

    Ok(0)
}

/// Prints the demo's address and commands to try.
fn hints(mesh: &str, published: &[(u16, SocketAddr)]) {
    // If port 8080 was taken, a warning has been printed, and there is no page to show.
    let page = published.iter().find(|(port, _)| *port == 8080).map_or_else(String::new, |(_, address)| {
        format!("Look:   http://{address}/productpage   (reload: the stars change as reviews v1, v2, v3 take turns)\n")
    });
    let meltemi = match mesh {
        "default" => "meltemi".to_owned(),
        other => format!("meltemi --mesh {other}"),
    };

    say!(
        "
{page}Try, in another terminal:
  {meltemi} status
  {meltemi} logs productpage-v1 -c proxy
  {meltemi} exec productpage-v1 -- curl -s http://reviews:9080/reviews/0
  {meltemi} apply -f - <<'YAML'
  apiVersion: networking.istio.io/v1
  kind: VirtualService
  metadata: {{name: reviews}}
  spec:
    hosts: [reviews]
    http:
    - fault: {{abort: {{httpStatus: 503, percentage: {{value: 50}}}}}}
      route: [{{destination: {{host: reviews}}}}]
  YAML
Ctrl-C ends everything."
    );
}
