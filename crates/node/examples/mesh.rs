//! A mesh whose control plane and sidecars are stand-ins: enough to try namespaces, capture and
//! lifecycle by themselves.
//!
//! `mesh up DIR [IMAGE-MAP [DIAL-MAP]]` starts one (folders from `RUN` and `STATE` in the
//! environment); `mesh list|logs|exec|run|…` talks to it. The stand-in sidecar passes captured
//! connections on to where they were going, marked as a proxy's, and notes them in its log.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::exit;

use meltemi_node::api::{ProgramName, Run, Target};
use meltemi_node::{Client, DialMap, ImageMap, UpOptions};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if let Some(code) = meltemi_node::dispatch(&arguments) {
        exit(code);
    }
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let words: Vec<&str> = arguments
        .iter()
        .skip(1)
        .filter_map(|word| word.to_str())
        .collect();

    if let ["up", dir, maps @ ..] = &words[..] {
        let mut options = UpOptions::new("example");
        options.dirs = vec![(*dir).into()];
        options.run_dir = folder("RUN");
        options.state_dir = folder("STATE");
        options.publish = BTreeMap::from([(8080, 0)]);
        if let Some(path) = maps.first() {
            options.images = vec![ImageMap::load(path.as_ref())?];
        }
        if let Some(path) = maps.get(1) {
            options.dial_map = DialMap::parse(&std::fs::read_to_string(path)?)?;
        }
        options.on_event = Box::new(|event| println!("{event:?}"));
        return meltemi_node::up(options);
    }

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let code = runtime.block_on(async {
        match words[..] {
            ["control", ..] => control(&flags(&words)).await,
            ["sidecar", ..] => sidecar(&flags(&words)).await,
            ["mark"] => Ok(match SockRef::from(&TcpSocket::new_v4()?).set_mark(1337) {
                Ok(()) => 0,
                Err(_) => 13,
            }),
            ["answer", port, text] => answer(port.parse()?, text).await,
            _ => client(Client::new(&folder("RUN").unwrap_or_default()), &words).await,
        }
    })?;

    exit(code)
}

fn flags<'a>(words: &[&'a str]) -> BTreeMap<&'a str, &'a str> {
    words
        .windows(2)
        .filter_map(|pair| Some((pair[0].strip_prefix("--")?, pair[1])))
        .collect()
}

async fn control(flags: &BTreeMap<&str, &str>) -> anyhow::Result<i32> {
    let run = PathBuf::from(flags["run-dir"]);
    let _ = std::fs::remove_file(run.join("control.sock"));
    let listener = tokio::net::UnixListener::bind(run.join("control.sock"))?;
    std::fs::write(run.join("root-cert.pem"), "none")?;
    loop {
        listener.accept().await?;
    }
}

async fn sidecar(flags: &BTreeMap<&str, &str>) -> anyhow::Result<i32> {
    let ready = TcpListener::bind("0.0.0.0:15021").await?;
    if let Some(path) = flags.get("host-socket") {
        // Blocking, and once: a stand-in.
        let wanted = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080));
        let (reply, fd) = meltemi_net::fdpass::ask_blocking(
            path.as_ref(),
            meltemi_net::fdpass::ListenRequest(wanted),
        )?;

        println!("host socket: {reply:?}");
        if let Some(fd) = fd {
            let listener = std::net::TcpListener::from(fd);
            listener.set_nonblocking(true)?;
            tokio::spawn(greet(TcpListener::from_std(listener)?, "gateway"));
        }
    } else {
        tokio::spawn(pass_on(
            TcpListener::bind("0.0.0.0:15001").await?,
            "outbound",
            None,
        ));

        tokio::spawn(pass_on(
            TcpListener::bind("0.0.0.0:15006").await?,
            "inbound",
            Some(Ipv4Addr::new(127, 0, 0, 6)),
        ));

        tokio::spawn(forward_dns(UdpSocket::bind("127.0.0.1:15053").await?));
    }

    println!("sidecar {} up", flags["pod"]);

    greet(ready, "ready").await
}

async fn greet(listener: TcpListener, text: &'static str) -> anyhow::Result<i32> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let _ = stream.read(&mut [0; 1024]).await;
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
                text.len()
            );
            let _ = stream.write_all(head.as_bytes()).await;
        });
    }
}

async fn answer(port: u16, text: &str) -> anyhow::Result<i32> {
    greet(
        TcpListener::bind(("0.0.0.0", port)).await?,
        Box::leak(text.to_owned().into_boxed_str()),
    )
    .await
}

async fn pass_on(
    listener: TcpListener,
    side: &'static str,
    source: Option<Ipv4Addr>,
) -> anyhow::Result<()> {
    loop {
        let (mut inner, _) = listener.accept().await?;
        tokio::spawn(async move {
            let to = SockRef::from(&inner)
                .original_dst_v4()
                .ok()
                .and_then(|a| a.as_socket());

            println!("{side} to {to:?}");
            let Some(to) = to else { return };
            let connect = async {
                let socket = TcpSocket::new_v4()?;
                SockRef::from(&socket).set_mark(1337)?;
                if let Some(source) = source {
                    socket.bind((source, 0).into())?;
                }
                socket.connect(to).await
            };

            match connect.await {
                Ok(mut outer) => {
                    let _: Result<_, _> =
                        tokio::io::copy_bidirectional(&mut inner, &mut outer).await;
                }
                Err(error) => println!("{side} to {to}: {error}"),
            }
        });
    }
}

async fn forward_dns(socket: UdpSocket) -> anyhow::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await?;
        let raw = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        raw.set_mark(1337)?;
        raw.set_nonblocking(true)?;
        raw.connect(&SocketAddr::from((Ipv4Addr::new(10, 44, 0, 1), 53)).into())?;
        let upstream = UdpSocket::from_std(raw.into())?;
        upstream.send(&buffer[..length]).await?;
        let length = upstream.recv(&mut buffer).await?;
        socket.send_to(&buffer[..length], from).await?;
    }
}

async fn client(client: Client, words: &[&str]) -> anyhow::Result<i32> {
    let target = |name: &str| {
        let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
        Target {
            namespace: namespace.into(),
            name: name.into(),
        }
    };

    match words {
        ["list"] => println!("{}", serde_json::to_string_pretty(&client.list().await?)?),
        ["logs", name, rest @ ..] => {
            let follow = rest.contains(&"follow");
            let mut stream = client
                .logs(target(name), rest.contains(&"proxy"), None, follow)
                .await?;
            while let Some(bytes) = stream.output().await? {
                print!("{}", String::from_utf8_lossy(&bytes));
            }
        }
        ["exec", name, argv @ ..] => {
            return Ok(client
                .exec(
                    target(name),
                    argv.iter().map(|w| (*w).to_owned()).collect(),
                    Vec::new(),
                )
                .await?);
        }
        ["run", app, port, argv @ ..] => {
            let run = Run {
                name: None,
                app: (*app).to_owned(),
                version: None,
                ports: vec![port.parse()?],
                namespace: "default".into(),
                service_account: "default".into(),
                replicas: 1,
                labels: meltemi_types::Labels::default(),
                proxy: None,
                argv: argv.iter().map(|w| (*w).to_owned()).collect(),
                env: std::env::vars().collect(),
                cwd: std::env::current_dir()?,
                detach: false,
            };

            let (keys, mut stream) = client.run(run).await?;
            println!("started {}", keys[0]);
            while let Some(bytes) = stream.output().await? {
                print!("{}", String::from_utf8_lossy(&bytes));
            }
        }
        ["stop", name] => println!("{}", client.stop(target(name)).await?),
        ["restart", name, "app"] => println!(
            "{}",
            client.restart(target(name), Some(ProgramName::App)).await?
        ),
        ["restart", name] => println!("{}", client.restart(target(name), None).await?),
        ["get", address] => {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            println!("{}", text.rsplit("\r\n\r\n").next().unwrap_or_default());
        }
        other => anyhow::bail!("what is {other:?}?"),
    }

    Ok(0)
}
