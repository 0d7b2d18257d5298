//! Shell completion: prints the shell's script, and answers the script's requests for candidates.

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;
use clap_complete::env::Shells;
use clap_complete::{CompleteEnv, Shell};

use crate::args::Cli;
use crate::output;

/// Environment variable that the script sets when it requests candidates.
const VARIABLE: &str = "COMPLETE";

/// If the shell's script started this process, prints the candidates and exits. Otherwise does
/// nothing.
pub fn answer_shell() {
    CompleteEnv::with_factory(Cli::command)
        .var(VARIABLE)
        .complete();
}

/// Prints the completion script for a shell. The script runs this program to get candidates.
///
/// # Errors
/// When the path of this program cannot be determined.
pub fn print_completion(shell: Shell) -> Result<i32> {
    // A program that was called by a path may not be on the PATH: let the script call it by path.
    let typed = std::env::args_os().next().unwrap_or_default();
    let program = match typed.as_encoded_bytes().contains(&b'/') {
        true => std::env::current_exe()
            .context("cannot tell which program this is")?
            .display()
            .to_string(),
        false => "meltemi".to_owned(),
    };

    let mut script = Vec::new();
    let shells = Shells::builtins();
    let completer = shells
        .completer(&shell.to_string())
        .with_context(|| format!("no completion for {shell}"))?;
    completer.write_registration(VARIABLE, "meltemi", "meltemi", &program, &mut script)?;

    match output::bytes(&script) {
        Err(error) if error.is::<output::ReaderLeft>() => Ok(output::READER_LEFT),
        other => other.map(|()| 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_has_a_script() {
        for shell in [
            Shell::Bash,
            Shell::Elvish,
            Shell::Fish,
            Shell::PowerShell,
            Shell::Zsh,
        ] {
            assert!(
                Shells::builtins().completer(&shell.to_string()).is_some(),
                "{shell}"
            );
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
