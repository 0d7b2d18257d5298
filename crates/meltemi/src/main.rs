//! The binary `meltemi`: chooses the role of the process, wires it, and turns failures into
//! messages and exit codes.
//!
//! `meltemi-cli` parses the commands that users type. The node starts `control`, `sidecar` and
//! `sample`. The hidden roles that enter namespaces are checked first, before any thread exists.
//! This crate decides nothing about configuration, requests or output; the crates below do.

mod roles;
mod up;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser};
use meltemi_cli::{Cli, Command, Mesh};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
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

    let cli = Cli::from_arg_matches(&Cli::command().get_matches_from(arguments))?;

    match cli.command {
        Command::Demo(args) => up::demo(&cli.mesh, cli.run_dir, args),
        Command::Up(args) => up::up(&cli.mesh, cli.run_dir, args),
        Command::Proxy(args) => {
            meltemi_node::raise_open_files();
            roles::proxy(args)
        }
        Command::Mesh(command) => {
            meltemi_cli::run(&Mesh::new(&cli.mesh, cli.run_dir.as_deref()), command)
        }
        Command::Completion { shell } => meltemi_cli::print_completion(shell),
    }
}
