//! The commands `demo` and `up`: turn arguments into the node's options, run the mesh until Ctrl-C,
//! and print its events.

mod printer;

use std::io::{Write as _, stderr, stdout};
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use meltemi_cli::args::Publication;
use meltemi_cli::{Mesh, UpArgs};
use meltemi_node::{DialMap, Event, ImageMap, ServicePublication, UpOptions};
use printer::{Line, Printer};

const DEMO: &[(&str, &str)] = &[
    ("bookinfo.yaml", include_str!("../demo/bookinfo.yaml")),
    ("gateway.yaml", include_str!("../demo/gateway.yaml")),
];
const DEMO_IMAGES: &str = include_str!("../demo/images.yaml");

/// Runs Bookinfo, and the directories of `-f` if there are any. Its mesh is one of its own, so that
/// nothing of the user's is in force in it.
pub(crate) fn demo(mesh: Option<String>, run_dir: Option<PathBuf>, args: UpArgs) -> Result<i32> {
    let mesh = mesh.unwrap_or_else(|| "demo".to_owned());
    let mut options = options(&mesh, run_dir, args)?;
    options.embedded = DEMO
        .iter()
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
        .collect();
    options
        .images
        .push(ImageMap::parse("demo/images.yaml", DEMO_IMAGES)?);
    options.take_free_ports = true;

    run(options, Command::Demo)
}

/// Runs the directories of `-f`.
pub(crate) fn up(mesh: Option<String>, run_dir: Option<PathBuf>, args: UpArgs) -> Result<i32> {
    if args.dirs.is_empty() {
        bail!(
            "which configuration? Name a directory or a file of YAML: meltemi up -f DIR (or try meltemi demo)"
        );
    }
    let mesh = mesh.unwrap_or_else(|| "default".to_owned());
    run(options(&mesh, run_dir, args)?, Command::Up)
}

/// What the user started.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Command {
    Demo,
    Up,
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
    for path in &args.dirs {
        let found = std::fs::metadata(path);
        let found = found.with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(
            found.is_dir() || found.is_file(),
            "{} is neither a file nor a directory: -f takes both, and watches them",
            path.display()
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
    options.fresh = args.fresh;
    options.publish_address = args.publish_address;
    for publication in args.publish {
        match publication {
            Publication::Gateway { port, machine } => _ = options.publish.insert(port, machine),
            Publication::Service {
                name,
                namespace,
                port,
                machine,
            } => options.publish_services.push(ServicePublication {
                name,
                namespace,
                port,
                machine_port: machine,
            }),
        }
    }
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

/// Runs the mesh and prints its events.
fn run(mut options: UpOptions, command: Command) -> Result<i32> {
    let mesh = Mesh::new(&options.name, options.run_dir.as_deref());
    let started = std::time::Instant::now();
    let mut printer = None;

    options.on_event = Box::new(move |event| {
        let is_first = printer.is_none();
        // Whether this is the only mesh is known once its folder is there.
        let printer = printer.get_or_insert_with(|| Printer::new(mesh.command()));
        if is_first && command == Command::Demo {
            print(Line::Say(GREETING.to_owned()));
        }

        let is_ready = event == Event::AllReady && !printer.was_ready();
        if let Some(line) = printer.line(event, started.elapsed()) {
            print(line);
        }
        if is_ready && command == Command::Demo {
            print(Line::Say(hints(&mesh.command(), printer.published())));
        }
    });

    meltemi_node::up(options)?;

    Ok(0)
}

/// Prints a line and ignores errors: the mesh keeps running when the reader closes the pipe (`|
/// grep -m1 ready`).
fn print(line: Line) {
    _ = match line {
        Line::Say(text) => writeln!(stdout(), "{text}"),
        Line::Complain(text) => writeln!(stderr(), "{text}"),
    };
}

const GREETING: &str = "Bookinfo is starting: six workloads, each in a network namespace of its own with a sidecar beside it.";

/// The demo's address, and commands to try.
fn hints(meltemi: &str, published: &[(u16, SocketAddr)]) -> String {
    // Without a published port there is no page to show; a warning has said why.
    let page = published.iter().find(|(port, _)| *port == 8080).map_or_else(String::new, |(_, address)| {
        format!("Look:   http://{address}/productpage   (reload: the stars change as reviews v1, v2, v3 take turns)\n")
    });

    format!(
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
    )
}
