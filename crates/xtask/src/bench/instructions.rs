//! User-space instructions for each request, counted by callgrind.
//!
//! Each binary serves few requests in one run and many in another: the difference of the two
//! counts, divided by the difference in requests, leaves out the start of the process.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::report::{Section, number};
use crate::peers::Peers;

/// Requests of the short run and of the long one.
const FEW: u32 = 400;
const MANY: u32 = 2400;

/// A start under callgrind takes seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// The filters, retries and access log of an Istio sidecar, without discovery. `PORT`, `BACKEND`
/// and `LOG` stand for what differs between runs.
const BOOTSTRAP: &str = include_str!("instructions.yaml");

/// How the client speaks to the proxy. The server behind it always speaks HTTP/1.1.
#[derive(Debug, Clone, Copy)]
enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    fn title(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }

    /// Arguments of h2load: connections, and streams at once on each.
    fn load(self) -> &'static [&'static str] {
        match self {
            Self::Http1 => &["--h1", "-t1", "-c8"],
            Self::Http2 => &["-t1", "-c4", "-m16"],
        }
    }
}

/// Counts the instructions of both binaries for each protocol.
pub fn measure(before: &Path, after: &Path, programs: &Path, peers: &Peers) -> Result<Section> {
    let mut rows = Vec::new();
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let old = per_request(before, programs, peers, protocol)?;
        let new = per_request(after, programs, peers, protocol)?;
        println!(
            "instructions {}: {old:.0} before, {new:.0} after",
            protocol.title()
        );
        rows.push(vec![
            protocol.title().to_owned(),
            number(old),
            number(new),
            format!("**{:.3}**", new / old),
        ]);
    }

    Ok(Section {
        title: "instructions a request, before and after".to_owned(),
        header: ["client speaks", "before", "after", "ratio"]
            .map(str::to_owned)
            .to_vec(),
        rows,
        notes: vec![format!(
            "User space only, by callgrind, {} requests; the filters, retries and access log of an Istio sidecar.",
            number(f64::from(MANY - FEW))
        )],
    })
}

fn per_request(binary: &Path, programs: &Path, peers: &Peers, protocol: Protocol) -> Result<f64> {
    let few = count(binary, programs, peers, protocol, FEW)?;
    let many = count(binary, programs, peers, protocol, MANY)?;

    Ok((many - few) / f64::from(MANY - FEW))
}

/// Instructions of a whole process that serves this many requests.
fn count(
    binary: &Path,
    programs: &Path,
    peers: &Peers,
    protocol: Protocol,
    requests: u32,
) -> Result<f64> {
    let home = Home::new()?;
    let (port, backend) = (free_port()?, free_port()?);
    let bootstrap = BOOTSTRAP
        .replace("BACKEND", &backend.to_string())
        .replace("PORT", &port.to_string())
        .replace("LOG", &home.0.join("access.log").to_string_lossy());
    fs::write(home.0.join("bootstrap.yaml"), bootstrap)?;

    let mut server = Command::new(programs);
    let _server = Running::start(server.args(["bench-backend", &backend.to_string()]))?;

    let counts = home.0.join("counts");
    let mut proxy = Command::new("valgrind");
    proxy
        .args(["--quiet", "--tool=callgrind"])
        .arg(format!("--callgrind-out-file={}", counts.display()))
        .arg(binary)
        .args(["proxy", "--concurrency", "1", "-c"])
        .arg(home.0.join("bootstrap.yaml"));
    let mut proxy = Running::start(peers.apply(&mut proxy))?;
    proxy.wait_for(port)?;

    let mut load = Command::new("h2load");
    peers
        .apply(&mut load)
        .args(protocol.load())
        .args(["-n", &requests.to_string()])
        .arg(format!("http://127.0.0.1:{port}/"));
    let said = crate::shell::output(&mut load)?;
    let succeeded = format!("{requests} succeeded");
    ensure!(
        said.contains(&succeeded),
        "h2load did not see {succeeded}:\n{said}"
    );

    proxy.terminate()?;
    let text = fs::read_to_string(&counts).context("callgrind wrote no counts")?;
    let total = text
        .lines()
        .find_map(|line| line.strip_prefix("totals: "))
        .context("callgrind's counts have no line of totals")?;

    Ok(total.trim().parse()?)
}

/// A folder that goes with the value.
struct Home(PathBuf);

impl Home {
    fn new() -> Result<Self> {
        let path =
            std::env::temp_dir().join(format!("meltemi-instructions-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path)?;

        Ok(Self(path))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A process that ends with the value.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", super::shown(command)))?;

        Ok(Self(child))
    }

    fn wait_for(&mut self, port: u16) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = self.0.try_wait()? {
                bail!("the proxy ended before it listened: {status}");
            }
            ensure!(
                Instant::now() < deadline,
                "the proxy does not listen on {port}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }

        Ok(())
    }

    /// Asks the process to end and waits until callgrind has written its counts.
    fn terminate(&mut self) -> Result<()> {
        let pid = i32::try_from(self.0.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .context("a process has an id")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;

        let deadline = Instant::now() + PATIENCE;
        while self.0.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "the proxy does not end");
            std::thread::sleep(Duration::from_millis(20));
        }

        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
