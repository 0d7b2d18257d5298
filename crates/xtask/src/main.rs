//! Chores of the repository: `cargo xtask CHORE`.
//!
//! In: this checkout. Out: exit codes, tables, and what tests need below `target/`. It runs the
//! binary as users do and imports nothing of ours; nothing that ships depends on it.

mod bench;
mod dependencies;
mod fuzz;
mod peers;
mod shell;
mod test;
mod tidy;

use anyhow::{Result, bail};

const USAGE: &str = "\
cargo xtask CHORE

  test [FILTER]   set up what the tests need, then run all of them; says what was skipped and why
  tidy            the architecture test: crate edges, forbidden imports, front pages
  bench [CASE..]  our proxy beside Envoy in one run, ratios printed (bench --help: cases and options)
  dependencies    licences, refused crates, entries of Cargo.toml that nobody uses
  fuzz [TARGET..] mutated input for the parsers of foreign bytes, guided by coverage (--seconds N)
  peers           only set up the peers that tests and benchmarks use, below target/peers
";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (chore, rest) = match arguments.split_first() {
        Some((chore, rest)) => (chore.as_str(), rest),
        None => ("", &[][..]),
    };

    match chore {
        "test" => test::run(rest),
        "tidy" => tidy::run(),
        "bench" => bench::run(rest),
        // Programs that the benchmark runs inside workloads.
        "bench-backend" => bench::backend::run(rest),
        "bench-poll" => bench::poll::run(rest),
        "dependencies" => dependencies::run(),
        "fuzz" => fuzz::run(rest),
        "peers" => peers::set_up_with_istio().map(|peers| println!("{peers:#?}")),
        "" | "help" | "-h" | "--help" => {
            print!("{USAGE}");
            Ok(())
        }
        other => bail!("there is no chore {other:?}\n\n{USAGE}"),
    }
}
