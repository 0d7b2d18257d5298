//! The machine that figures belong to.

use std::fs;

use anyhow::{Context, Result};

/// Number of cores.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What it is, in one line.
pub fn description() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .and_then(|rest| rest.split_once(':'));

    let model = model
        .map_or("unknown processor", |(_, name)| name.trim())
        .to_owned();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes = memory.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?
            .trim()
            .strip_suffix(" kB")?
            .parse::<f64>()
            .ok()
    });

    let gigabytes = kilobytes.unwrap_or_default() / 1024.0 / 1024.0;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();

    format!(
        "{model}, {} cores, {gigabytes:.0} GiB, Linux {}",
        cores(),
        kernel.trim()
    )
}

/// Time that the hypervisor gave to others, counted from [`Steal::now`].
pub struct Steal {
    stolen: u64,
    total: u64,
}

impl Steal {
    /// From here on.
    pub fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat")?;
        let fields: Vec<u64> = text
            .lines()
            .next()
            .context("/proc/stat")?
            .split_whitespace()
            .skip(1)
            .filter_map(|f| f.parse().ok())
            .collect();

        // proc(5): steal is the eighth; guest times behind it are counted in user time already.
        Ok(Self {
            stolen: fields.get(7).copied().unwrap_or_default(),
            total: fields.iter().take(8).sum(),
        })
    }

    /// The share of all cores' time since then.
    pub fn since(&self) -> Result<f64> {
        let now = Self::now()?;
        let total = now.total.saturating_sub(self.total).max(1);
        Ok(now.stolen.saturating_sub(self.stolen) as f64 / total as f64)
    }
}
