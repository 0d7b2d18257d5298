//! The command line: parses arguments and carries out the commands that talk to a running mesh.
//!
//! In: arguments, and the sockets of a running mesh. Out: tables, YAML or JSON, and exit codes like
//! kubectl's. Commands that start processes (`demo`, `up`, `proxy`) are only parsed here; the
//! binary carries them out. Imports nothing of the data path.

mod access_log;
pub mod args;
mod candidates;
mod columns;
mod completion;
mod habits;
mod jsonpath;
mod listing;
mod mesh;
mod names;
mod objects;
mod offline;
mod output;
mod port_forward;
mod sources;
mod status;
mod table;
mod view;
mod workloads;

pub use args::{Cli, Command, ProxyArgs, UpArgs};
pub use completion::{answer_shell, print_completion};
pub use habits::parse;
pub use mesh::Mesh;
pub use output::Output;
pub use table::age_since;

/// Carries out a command that talks to a running mesh. Returns the exit code.
///
/// # Errors
/// When the command cannot be carried out; the error's text is for the user.
pub fn run(mesh: &Mesh, command: args::MeshCommand) -> anyhow::Result<i32> {
    use args::MeshCommand as C;

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(async {
        match command {
            C::Apply(args) => objects::apply(mesh, args).await,
            C::Get(args) => objects::get(mesh, args).await,
            C::Delete(args) => objects::delete(mesh, args).await,
            C::Status(args) => status::status(mesh, args).await,
            C::Run(args) => workloads::run(mesh, args).await,
            C::Logs(args) => workloads::logs(mesh, args).await,
            C::Exec(args) => workloads::exec(mesh, args).await,
            C::PortForward(args) => port_forward::port_forward(mesh, args).await,
            C::Stop(args) => workloads::stop(mesh, args).await,
            C::Restart(args) => workloads::restart(mesh, args).await,
        }
    });

    match outcome {
        Err(error) if error.is::<output::ReaderLeft>() => Ok(output::READER_LEFT),
        other => other,
    }
}
