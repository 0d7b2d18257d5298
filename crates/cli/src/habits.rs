//! Answers to commands and flags of kubectl, istioctl and Compose that Meltemi does not have: an
//! error that names the nearest command instead of a word that is spelled alike.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::exit;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory as _, FromArgMatches as _};

use crate::args::Cli;

/// Exit code for a command line that is not understood.
const USAGE: i32 = 2;

/// Parses a command line. Prints help or an error and ends the process where there is no command
/// to carry out.
pub fn parse(arguments: &[OsString]) -> Cli {
    let parsed = Cli::command()
        .try_get_matches_from(arguments)
        .and_then(|matches| Cli::from_arg_matches(&matches));

    parsed.unwrap_or_else(|error| {
        let Some(answer) = answer(&error, arguments) else {
            error.exit()
        };
        // Standard error may be closed: the exit code still tells.
        let _ = writeln!(std::io::stderr(), "error: {answer}");
        exit(USAGE)
    })
}

/// The text of an error for a known habit.
fn answer(error: &clap::Error, arguments: &[OsString]) -> Option<String> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };

    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let command = text(ContextKind::InvalidSubcommand)?;
            let instead = instead_of_command(command)?;
            Some(format!("Meltemi has no command `{command}`; {instead}"))
        }
        ErrorKind::UnknownArgument => {
            // A flag is shown without its value.
            let flag = text(ContextKind::InvalidArg)?.split(['=', ' ']).next()?;
            let has = |command: &str| arguments.iter().any(|word| word == command);
            let command = ["get", "logs", "status"]
                .into_iter()
                .find(|word| has(word))?;
            let instead = instead_of_flag(command, flag)?;
            Some(format!("`{command}` has no {flag}; {instead}"))
        }
        _ => None,
    }
}

fn instead_of_command(command: &str) -> Option<&'static str> {
    Some(match command {
        "describe" => {
            "`meltemi get KIND NAME -o yaml` shows an object, `meltemi status WORKLOAD -o wide` a workload"
        }
        "analyze" | "validate" | "check" | "diff" => {
            "`meltemi apply --dry-run -f FILE` checks files against the mesh, `--dry-run=client` without one"
        }
        "create" | "replace" | "edit" | "patch" | "label" | "annotate" | "scale" | "set" => {
            "write the object into a file and run `meltemi apply -f FILE`"
        }
        "explain" | "api-resources" => {
            "https://istio.io/latest/docs/reference/config/ explains the kinds and fields"
        }
        "rollout" => "`meltemi restart WORKLOAD` restarts a workload",
        "proxy-config" | "pc" => {
            "`meltemi exec WORKLOAD -- curl -s localhost:15000/config_dump` prints the proxy's configuration"
        }
        "top" => {
            "`meltemi exec WORKLOAD -- curl -s localhost:15000/stats/prometheus` prints the proxy's metrics"
        }
        "wait" => "`run`, `stop` and `apply` wait by themselves; `meltemi status` shows the rest",
        "events" => {
            "`meltemi up` prints events as they happen, `meltemi status` shows what is wrong now"
        }
        "attach" => "`meltemi logs -f WORKLOAD` follows the program's output",
        "down" => "Ctrl-C where `meltemi up` runs ends the mesh",
        "version" => "`meltemi --version` prints the version",
        "config" | "cluster-info" => "`--mesh NAME` chooses the mesh, `meltemi status` shows it",
        _ => return None,
    })
}

fn instead_of_flag(command: &str, flag: &str) -> Option<&'static str> {
    Some(match (command, flag) {
        ("get" | "status", "-w" | "--watch") => "`watch meltemi ...` repeats the command",
        ("logs", "--since" | "--since-time" | "--timestamps") => {
            "the log keeps no times; each line of the access log (-c proxy) begins with its time, and --tail limits the lines"
        }
        ("logs", "-l" | "--selector" | "-A" | "--all-namespaces" | "--all-containers") => {
            "it prints one workload: `meltemi status` lists them"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(line: &str) -> Option<String> {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let error = Cli::command().try_get_matches_from(&arguments).unwrap_err();
        answer(&error, &arguments)
    }

    #[test]
    fn foreign_commands_are_answered_with_the_nearest_one() {
        for (line, instead) in [
            ("meltemi describe svc reviews", "get KIND NAME -o yaml"),
            ("meltemi top", "/stats/prometheus"),
            ("meltemi analyze", "--dry-run=client"),
            ("meltemi edit vs reviews", "apply -f FILE"),
            ("meltemi proxy-config routes web", "config_dump"),
            ("meltemi get vs -w", "watch meltemi"),
            (
                "meltemi logs web --since=5m",
                "no --since; the log keeps no times",
            ),
            ("meltemi logs web -A", "one workload"),
        ] {
            let answer = answered(line).unwrap_or_default();
            assert!(answer.contains(instead), "{line}: {answer}");
        }

        assert_eq!(answered("meltemi statsu"), None, "clap knows a slip better");
    }
}
