//! Counters, gauges and histograms in per-worker shards.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Upper bounds of the histogram buckets. They are Envoy's defaults, which Istio uses for
/// milliseconds and for bytes.
pub const BUCKETS: [f64; 19] = [
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0, 30000.0,
    60000.0, 300000.0, 600000.0, 1800000.0, 3600000.0,
];

/// A number that only grows. One thread adds, any thread may read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`, if no other thread adds. Cheaper than [`Counter::add_shared`], since it needs no
    /// atomic read-modify-write.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Adds `n`; several threads may add at the same time.
    pub fn add_shared(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The current value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Sets the value.
    pub fn set(&self, n: i64) {
        self.0.store(n, Relaxed);
    }

    /// The current value.
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// A distribution over [`BUCKETS`]. One thread records, any thread may read.
#[derive(Debug)]
pub struct Histogram {
    counts: [AtomicU64; BUCKETS.len() + 1],
    sum: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; BUCKETS.len() + 1],
            sum: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    /// Records one value.
    pub fn record(&self, value: f64) {
        let bucket = BUCKETS
            .iter()
            .position(|bound| value <= *bound)
            .unwrap_or(BUCKETS.len());
        let count = &self.counts[bucket];
        count.store(count.load(Relaxed) + 1, Relaxed);
        let sum = f64::from_bits(self.sum.load(Relaxed)) + value;
        self.sum.store(sum.to_bits(), Relaxed);
    }

    /// The count of each bucket (not cumulative; the last bucket is above all bounds) and the sum
    /// of all values.
    pub fn read(&self) -> ([u64; BUCKETS.len() + 1], f64) {
        (
            std::array::from_fn(|i| self.counts[i].load(Relaxed)),
            f64::from_bits(self.sum.load(Relaxed)),
        )
    }
}

/// The type of a metric family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution.
    Histogram,
}

/// The limit on series. Beyond it, new label sets of a family share one series whose label values
/// are all `other`, so that random paths or hosts cannot exhaust the memory.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Maximum number of series in one shard. Default 4,000.
    pub series: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { series: 4_000 }
    }
}

/// Label names and values, in the order of the output.
pub type LabelSet = Vec<(&'static str, Arc<str>)>;

#[derive(Debug, Clone)]
enum Cell {
    Counter(Arc<Counter>),
    Gauge(Arc<Gauge>),
    Histogram(Arc<Histogram>),
}

impl Cell {
    /// A number that differs once the cell has changed; `None` for a gauge, whose value stands as
    /// long as nobody changes it.
    fn activity(&self) -> Option<u64> {
        match self {
            Self::Counter(counter) => Some(counter.get()),
            Self::Gauge(_) => None,
            Self::Histogram(histogram) => Some(histogram.read().0.iter().sum()),
        }
    }

    /// Whether only its table holds it, so that nobody can add to it unseen.
    fn is_unheld(&self) -> bool {
        let holders = match self {
            Self::Counter(counter) => Arc::strong_count(counter),
            Self::Gauge(gauge) => Arc::strong_count(gauge),
            Self::Histogram(histogram) => Arc::strong_count(histogram),
        };
        holders == 1
    }
}

type Key = (&'static str, LabelSet);

#[derive(Debug, Default)]
struct Table {
    series: HashMap<Key, Cell>,
    folded: u64,
}

/// The series of one worker.
#[derive(Debug)]
pub struct Shard {
    budget: Budget,
    table: Mutex<Table>,
}

/// Locks, ignoring poison: a panic in a scrape must not stop the workers.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shard {
    /// Whether little of the budget is left. Whoever keeps series for speed should let them go now:
    /// [`Registry::expire`] removes only those that nobody keeps.
    pub fn is_nearly_full(&self) -> bool {
        lock(&self.table).series.len() >= self.budget.series * 3 / 4
    }

    fn cell(&self, family: &'static str, labels: LabelSet, make: fn() -> Cell) -> Cell {
        let mut table = lock(&self.table);
        if let Some(cell) = table.series.get(&(family, labels.clone())) {
            return cell.clone();
        }
        let labels = if table.series.len() < self.budget.series {
            labels
        } else {
            table.folded += 1;
            labels
                .into_iter()
                .map(|(name, _)| (name, Arc::from("other")))
                .collect()
        };

        table
            .series
            .entry((family, labels))
            .or_insert_with(make)
            .clone()
    }

    /// Returns the counter of this family with these labels, creating it if necessary. Slow: keep
    /// the result.
    pub fn counter(&self, family: &'static str, labels: LabelSet) -> Arc<Counter> {
        match self.cell(family, labels, || Cell::Counter(Arc::default())) {
            Cell::Counter(counter) => counter,
            // Two types under one family name are a programming error; the values are lost.
            _ => Arc::default(),
        }
    }

    /// The gauge of this family with these labels.
    pub fn gauge(&self, family: &'static str, labels: LabelSet) -> Arc<Gauge> {
        match self.cell(family, labels, || Cell::Gauge(Arc::default())) {
            Cell::Gauge(gauge) => gauge,
            _ => Arc::default(),
        }
    }

    /// The histogram of this family with these labels.
    pub fn histogram(&self, family: &'static str, labels: LabelSet) -> Arc<Histogram> {
        match self.cell(family, labels, || Cell::Histogram(Arc::default())) {
            Cell::Histogram(histogram) => histogram,
            _ => Arc::default(),
        }
    }
}

/// The value of one series, added up over the shards.
#[derive(Debug, Clone, PartialEq)]
pub enum Sample {
    /// A counter's value.
    Counter(u64),
    /// A gauge's value.
    Gauge(i64),
    /// Counts per bucket and the sum.
    Histogram(Box<[u64; BUCKETS.len() + 1]>, f64),
}

/// All shards of a process.
#[derive(Debug, Default)]
pub struct Registry {
    budget: Budget,
    shards: Mutex<Vec<Arc<Shard>>>,
    /// What [`Registry::expire`] saw of each series, and since when it has been so.
    seen: Mutex<HashMap<Key, (u64, Instant)>>,
}

/// A series that nothing was added to for this long may be removed.
const IDLE: Duration = Duration::from_secs(600);

impl Registry {
    /// Creates a registry; `budget` applies to each shard.
    pub fn new(budget: Budget) -> Self {
        Self {
            budget,
            shards: Mutex::default(),
            seen: Mutex::default(),
        }
    }

    /// Creates a shard for one worker.
    pub fn shard(&self) -> Arc<Shard> {
        let shard = Arc::new(Shard {
            budget: self.budget,
            table: Mutex::default(),
        });
        lock(&self.shards).push(shard.clone());
        shard
    }

    /// All series, sorted by family and labels.
    pub fn gather(&self) -> Vec<(&'static str, LabelSet, Sample)> {
        let mut merged: HashMap<(&'static str, LabelSet), Sample> = HashMap::new();
        for shard in lock(&self.shards).iter() {
            for (key, cell) in &lock(&shard.table).series {
                let sample = match cell {
                    Cell::Counter(counter) => Sample::Counter(counter.get()),
                    Cell::Gauge(gauge) => Sample::Gauge(gauge.get()),
                    Cell::Histogram(histogram) => {
                        let (counts, sum) = histogram.read();
                        Sample::Histogram(Box::new(counts), sum)
                    }
                };

                match merged.get_mut(key) {
                    None => {
                        merged.insert(key.clone(), sample);
                    }
                    Some(total) => total.add(sample),
                }
            }
        }

        let mut all: Vec<_> = merged
            .into_iter()
            .map(|((family, labels), sample)| (family, labels, sample))
            .collect();

        all.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));

        all
    }

    /// Removes series that were idle for ten minutes, in all shards at once, if a shard is nearly
    /// full. Call it every minute or so: it learns what is idle from one call to the next.
    ///
    /// A scrape adds the shards up, so removing a series from one of them would look like a
    /// counter that starts anew at what the others hold.
    pub fn expire(&self, now: Instant) {
        let shards = lock(&self.shards).clone();
        let is_pressed = shards.iter().any(|shard| shard.is_nearly_full());
        let mut tables: Vec<_> = shards.iter().map(|shard| lock(&shard.table)).collect();

        let mut activity: HashMap<Key, u64> = HashMap::new();
        for (key, cell) in tables.iter().flat_map(|table| &table.series) {
            if let Some(number) = cell.activity() {
                let total = activity.entry(key.clone()).or_default();
                *total = total.wrapping_add(number);
            }
        }

        let mut seen = lock(&self.seen);
        seen.retain(|key, _| activity.contains_key(key));
        for (key, number) in activity {
            let (last, since) = seen.entry(key).or_insert((number, now));
            if *last != number {
                (*last, *since) = (number, now);
            }
        }

        if !is_pressed {
            return;
        }
        let is_idle = |since: &Instant| now.saturating_duration_since(*since) >= IDLE;
        seen.retain(|key, (_, since)| {
            let held = |table: &MutexGuard<'_, Table>| {
                table.series.get(key).is_some_and(|cell| !cell.is_unheld())
            };
            let goes = is_idle(since) && !tables.iter().any(held);
            if goes {
                tables
                    .iter_mut()
                    .for_each(|table| _ = table.series.remove(key));
            }
            !goes
        });
    }

    /// Number of lookups that were folded into `other`.
    pub fn folded(&self) -> u64 {
        lock(&self.shards)
            .iter()
            .map(|shard| lock(&shard.table).folded)
            .sum()
    }
}

impl Sample {
    fn add(&mut self, other: Sample) {
        match (self, other) {
            (Self::Counter(a), Self::Counter(b)) => *a += b,
            (Self::Gauge(a), Self::Gauge(b)) => *a += b,
            (Self::Histogram(counts, sum), Self::Histogram(more, more_sum)) => {
                for (count, n) in counts.iter_mut().zip(more.iter()) {
                    *count += n;
                }
                *sum += more_sum;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(value: &str) -> LabelSet {
        vec![("path", Arc::from(value))]
    }

    #[test]
    fn shards_add_up() {
        let registry = Registry::default();
        let (a, b) = (registry.shard(), registry.shard());
        a.counter("hits", labels("/")).add(2);
        b.counter("hits", labels("/")).add(3);
        a.histogram("took", labels("/")).record(0.7);
        b.histogram("took", labels("/")).record(7_000_000.0);
        let all = registry.gather();
        assert_eq!(all[0].2, Sample::Counter(5));
        let Sample::Histogram(counts, sum) = &all[1].2 else {
            panic!("took is a histogram")
        };
        assert_eq!(
            (counts[1], counts[BUCKETS.len()], *sum),
            (1, 1, 7_000_000.7)
        );
    }

    #[test]
    fn random_labels_fold_once_the_budget_is_spent() {
        let registry = Registry::new(Budget { series: 10 });
        let shard = registry.shard();
        for i in 0..1_000 {
            shard.counter("hits", labels(&format!("/{i}"))).inc();
        }
        let all = registry.gather();
        assert_eq!(all.len(), 11);
        assert!(
            all.iter()
                .any(|(_, labels, sample)| &*labels[0].1 == "other"
                    && *sample == Sample::Counter(990))
        );

        assert_eq!(registry.folded(), 990);
    }

    #[test]
    fn idle_series_make_room_and_held_ones_stay() {
        let registry = Registry::new(Budget { series: 6 });
        let (a, b) = (registry.shard(), registry.shard());
        let start = Instant::now();
        let names = || -> Vec<String> {
            let all = registry.gather();
            all.iter()
                .map(|(_, labels, _)| labels[0].1.to_string())
                .collect()
        };

        a.counter("hits", labels("idle")).inc();
        b.counter("hits", labels("idle")).inc();
        let held = a.counter("hits", labels("held"));
        a.gauge("open", labels("gauge")).set(3);
        b.counter("hits", labels("busy")).inc();
        registry.expire(start);
        b.counter("hits", labels("busy")).inc();
        registry.expire(start + IDLE - Duration::from_secs(1));

        // Both shards have the room.
        registry.expire(start + IDLE);
        assert_eq!(names().len(), 4);

        // One has not: what is idle goes from both.
        a.counter("hits", labels("new")).inc();
        drop(a.counter("hits", labels("newer")));
        registry.expire(start + IDLE);
        assert_eq!(names(), ["busy", "held", "new", "newer", "gauge"]);

        drop(held);
        registry.expire(start + IDLE);
        assert_eq!(names(), ["busy", "new", "newer", "gauge"]);
    }
}
