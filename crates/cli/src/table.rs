//! Plain-text tables in kubectl's style: columns three spaces apart, no lines. An empty cell is
//! printed as `-`.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A header and rows.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        Self {
            rows: vec![header.iter().map(|cell| (*cell).to_owned()).collect()],
        }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };

        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let cell = if cell.is_empty() { "-" } else { cell };
                line.push_str(cell);
                line.extend(std::iter::repeat_n(
                    ' ',
                    width.saturating_sub(cell.chars().count()) + 3,
                ));
            }

            out.push_str(line.trim_end());
            out.push('\n');
        }

        out
    }
}

/// A duration in kubectl's style: `5s`, `3m`, `2h`, `4d`.
/// The time since a timestamp of RFC 3339, such as `3m`. `None` for any other text.
pub fn age_since(timestamp: &str) -> Option<String> {
    let at = OffsetDateTime::parse(timestamp, &Rfc3339).ok()?;
    let seconds = (OffsetDateTime::now_utc() - at).whole_seconds();
    Some(age(u64::try_from(seconds).unwrap_or(0)))
}

pub(crate) fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_without_trailing_spaces() {
        let mut table = Table::new(&["NAME", "AGE"]);
        table.row(vec!["reviews-v1".into(), age(7_300)]);
        table.row(vec!["x".into(), String::new()]);
        assert_eq!(
            table.render(),
            "NAME         AGE\nreviews-v1   2h\nx            -\n"
        );
    }
}
