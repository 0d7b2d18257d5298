//! The architecture test: holds the sentences of `ARCHITECTURE.md` that a program can hold.
//!
//! `workspace` reads the crates and their layers, `imports` checks the edges between crates,
//! `circles` those between a crate's files; `source` parses the files for the checks of code.

mod circles;
mod exceptions;
mod functions;
mod imports;
mod pages;
mod paths;
mod source;
mod tokens;
mod words;
mod workspace;

use anyhow::{Result, ensure};

use self::source::Source;
use self::workspace::Workspace;

pub fn run() -> Result<()> {
    let findings = findings()?;
    ensure!(
        findings.is_empty(),
        "the tree does not match ARCHITECTURE.md:\n  {}",
        findings.join("\n  ")
    );
    println!("tidy: the crates are as ARCHITECTURE.md says");
    Ok(())
}

/// One line for each place that breaks a rule; empty for a tidy tree.
fn findings() -> Result<Vec<String>> {
    let workspace = Workspace::read()?;
    let mut found = imports::check(&workspace);
    let mut long = functions::Exceptions::default();

    for member in &workspace.members {
        for source in Source::read_crate(member)? {
            found.extend(pages::check(&source));
            found.extend(words::check(&source));
            found.extend(functions::check(&source, &mut long));
            found.extend(exceptions::check(&source));
        }
    }

    found.extend(long.unused());
    let crates = workspace.members.iter().map(|member| member.name.as_str());
    found.extend(circles::findings(crates)?);
    Ok(found)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_tree_matches_the_architecture() {
        let findings = super::findings().expect("the workspace can be read");
        assert!(findings.is_empty(), "{}", findings.join("\n"));
    }
}
