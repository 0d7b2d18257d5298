//! The binary `meltemi`: chooses the role of the process, wires it, and turns failures into
//! messages and exit codes.
//!
//! `meltemi-cli` parses the commands that users type. The node starts `control`, `sidecar` and
//! `sample`. The hidden roles that enter namespaces are checked first, before any thread exists.
//! This crate decides nothing about configuration, requests or output; the crates below do.

mod memory;
mod roles;
mod up;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use meltemi_cli::{Command, Mesh};

fn main() -> ExitCode {
    let arguments = as_envoy(std::env::args_os().collect());
    if let Some(code) = meltemi_node::dispatch(&arguments) {
        return exit_code(code);
    }
    meltemi_cli::answer_shell();

    match run(&arguments) {
        Ok(code) => exit_code(code),
        Err(error) => {
            // Standard error may be closed: ignore that instead of panicking.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Starts the proxy where the binary stands in Envoy's place: called `envoy`, or with Envoy's first
/// flag in the place of a command. Istio's agent starts its proxy so.
fn as_envoy(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let is_called_envoy = arguments.first().is_some_and(|program| {
        Path::new(program)
            .file_name()
            .is_some_and(|name| name == "envoy")
    });
    let begins_with_config = arguments
        .get(1)
        .is_some_and(|first| first == "-c" || first == "--config-path");

    if is_called_envoy || begins_with_config {
        arguments.insert(1, "proxy".into());
    }

    arguments
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code.clamp(0, 255)).unwrap_or(1))
}

fn run(arguments: &[OsString]) -> anyhow::Result<i32> {
    // Roles that the node starts. Their flags are internal and not part of the documented command
    // line.
    let rest = || arguments.iter().skip(1);
    match arguments.get(1).and_then(|word| word.to_str()) {
        Some("control") => {
            meltemi_node::raise_open_files();
            return roles::control(roles::ControlArgs::parse_from(rest()));
        }
        Some("sidecar") => {
            meltemi_node::raise_open_files();
            return roles::sidecar(roles::SidecarArgs::parse_from(rest()));
        }
        Some("sample") => {
            meltemi_samples::run(meltemi_samples::SampleOptions::parse_from(rest()))?;
            return Ok(0);
        }
        _ => {}
    }

    let cli = meltemi_cli::parse(arguments);

    match cli.command {
        Command::Demo(args) => up::demo(cli.mesh, cli.run_dir, args),
        Command::Up(args) => up::up(cli.mesh, cli.run_dir, args),
        Command::Proxy(args) => {
            meltemi_node::raise_open_files();
            roles::proxy(args)
        }
        Command::Mesh(command) => {
            let mesh = Mesh::find(cli.mesh.as_deref(), cli.run_dir.as_deref());
            meltemi_cli::run(&mesh, command)
        }
        Command::Completion { shell } => meltemi_cli::print_completion(shell),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_is_a_proxy_in_envoys_place() {
        let role = |line: &str| {
            let arguments = line.split(' ').map(OsString::from).collect();
            let arguments = as_envoy(arguments);
            let words: Vec<_> = arguments
                .iter()
                .map(|word| word.to_string_lossy())
                .collect();
            words.join(" ")
        };

        assert_eq!(
            role("/usr/local/bin/envoy -c b.json"),
            "/usr/local/bin/envoy proxy -c b.json"
        );
        assert_eq!(role("meltemi -c b.json"), "meltemi proxy -c b.json");
        assert_eq!(role("meltemi get vs"), "meltemi get vs");
    }
}
