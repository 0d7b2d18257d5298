//! Processes of the mesh as the machine sees them: found, pinned, weighed.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

/// `/proc` counts in hundredths of a second on every Linux that we run on.
const TICK: Duration = Duration::from_millis(10);

/// A process and all below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// Process ids, the root first.
    pub pids: Vec<i32>,
}

/// Processor time of some processes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cpu {
    /// Outside the kernel.
    pub user: Duration,
    /// In the kernel, on their behalf.
    pub system: Duration,
}

/// Memory of some processes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Memory {
    /// Resident, MiB.
    pub rss: f64,
    /// Resident, shared pages split among who shares them, MiB.
    pub pss: f64,
}

impl Tree {
    /// A process and its descendants, as they are now.
    pub fn of(root: i32) -> Result<Self> {
        let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            if let Some(pid) = name.to_str().and_then(|name| name.parse().ok())
                && let Some(parent) = parent(pid)
            {
                children.entry(parent).or_default().push(pid);
            }
        }

        let mut pids = vec![root];
        let mut next = 0;
        while let Some(pid) = pids.get(next) {
            pids.extend(children.remove(pid).unwrap_or_default());
            next += 1;
        }

        Ok(Self { pids })
    }

    /// The process below that calls itself so, with what is below it. One that stands before a PID
    /// namespace and the first within have the same name.
    pub fn named(&self, title: &str) -> Result<Self> {
        let found: Vec<i32> = self
            .pids
            .iter()
            .copied()
            .filter(|pid| argv0(*pid).as_deref() == Some(title))
            .collect();

        let whole = Self::of(
            *found
                .first()
                .with_context(|| format!("no process is called {title:?}"))?,
        )?;

        ensure!(
            found.iter().all(|pid| whole.pids.contains(pid)),
            "{} processes are called {title:?}",
            found.len()
        );

        Ok(whole)
    }

    /// Time that all of them have taken.
    pub fn cpu(&self) -> Result<Cpu> {
        self.pids.iter().map(|pid| cpu(*pid)).sum()
    }

    /// Memory of each, with its name.
    pub fn memory(&self) -> Result<Vec<(String, Memory)>> {
        self.pids
            .iter()
            .map(|pid| {
                Ok((
                    fs::read_to_string(format!("/proc/{pid}/comm"))?
                        .trim()
                        .to_owned(),
                    memory(*pid)?,
                ))
            })
            .collect()
    }

    /// Ties every thread of every process to one core; threads and processes that they start
    /// inherit it.
    pub fn pin(&self, core: usize) -> Result<()> {
        let mut set = CpuSet::new();
        set.set(core);
        for pid in &self.pids {
            // A process may end meanwhile.
            let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
                continue;
            };
            for task in tasks.flatten() {
                let id = task
                    .file_name()
                    .to_str()
                    .and_then(|id| id.parse().ok())
                    .and_then(Pid::from_raw);

                match sched_setaffinity(id, &set) {
                    Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                    Err(error) => {
                        return Err(error)
                            .with_context(|| format!("pinning process {pid} to core {core}"));
                    }
                }
            }
        }

        Ok(())
    }
}

fn argv0(pid: i32) -> Option<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(String::from_utf8_lossy(line.split(|byte| *byte == 0).next()?).into_owned())
}

/// Fields of `/proc/PID/stat` behind the name, which may hold anything.
fn stat(pid: i32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

fn parent(pid: i32) -> Option<i32> {
    stat(pid)?.get(1)?.parse().ok()
}

fn cpu(pid: i32) -> Result<Cpu> {
    let fields = stat(pid).with_context(|| format!("process {pid} has ended"))?;

    // proc(5): utime and stime are fields 14 and 15; the name is the second.
    let ticks = |at: usize| {
        fields
            .get(at - 3)
            .and_then(|field| field.parse::<u32>().ok())
            .context("/proc/PID/stat")
    };

    Ok(Cpu {
        user: TICK * ticks(14)?,
        system: TICK * ticks(15)?,
    })
}

fn memory(pid: i32) -> Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let field = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .context(path.clone())?;
        let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
        anyhow::Ok(kilobytes / 1024.0)
    };

    Ok(Memory {
        rss: field("Rss")?,
        pss: field("Pss")?,
    })
}

impl Cpu {
    /// What was taken since an earlier reading.
    pub fn since(self, before: Self) -> Self {
        Self {
            user: self.user.saturating_sub(before.user),
            system: self.system.saturating_sub(before.system),
        }
    }
}

impl std::iter::Sum for Cpu {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            user: sum.user + one.user,
            system: sum.system + one.system,
        })
    }
}

impl std::iter::Sum for Memory {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            rss: sum.rss + one.rss,
            pss: sum.pss + one.pss,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_is_found_and_weighed() {
        let own = i32::try_from(std::process::id()).unwrap();
        let tree = Tree::of(parent(own).unwrap()).unwrap();
        assert!(tree.pids.contains(&own));
        assert!(memory(own).unwrap().rss >= memory(own).unwrap().pss);
        assert!(cpu(own).is_ok());
        assert!(
            Tree { pids: vec![own] }
                .named("nobody is called so")
                .is_err()
        );
    }
}
