//! Times in the words of `strftime`, as `absl::FormatTime` and Envoy know them, always in UTC.
//! Parsed once.

use std::time::{Duration, SystemTime};

use crate::digits;

/// A parsed time format; an empty one is Envoy's own, `%Y-%m-%dT%H:%M:%E3SZ`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TimeFormat {
    pieces: Vec<Piece>,
    unknown: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Text(String),
    /// One conversion, by its letter.
    Field(char),
    /// `%3f`: so many digits of the second's fraction.
    Fraction(u32),
    /// `%E*S` and `%E*f`: as many digits as it takes; whether the second comes first.
    Shortest(bool),
    /// `%E4Y`: the year with four digits at least.
    Year,
}

/// What stands for several conversions, in the C locale.
fn expansion(letter: char) -> Option<&'static str> {
    Some(match letter {
        'c' => "%a %b %e %H:%M:%S %Y",
        'D' | 'x' => "%m/%d/%y",
        'F' => "%Y-%m-%d",
        'r' => "%I:%M:%S %p",
        'R' => "%H:%M",
        'T' | 'X' => "%H:%M:%S",
        _ => return None,
    })
}

const FIELDS: &str = "aAbBhCdegGHIjklmMpPsSuUVwWyYzZf";

impl TimeFormat {
    /// Parses a format. What is unknown prints as it is written; a line feed is refused, since the
    /// text may be a header's.
    pub fn parse(format: &str) -> Result<Self, String> {
        let mut parsed = Self::default();
        parsed.read(format)?;
        Ok(parsed)
    }

    /// Conversions that are printed as they are written.
    pub fn unknown(&self) -> &[String] {
        &self.unknown
    }

    fn read(&mut self, format: &str) -> Result<(), String> {
        let mut rest = format;
        while let Some(at) = rest.find('%') {
            self.text(&rest[..at]);
            rest = &rest[at + 1..];
            let mut letters = rest.chars();
            let (first, second, third) = (letters.next(), letters.next(), letters.next());
            let used = match (first, second, third) {
                (Some('n'), ..) => return Err("a time format holds a line feed".to_owned()),
                (Some('%'), ..) => {
                    self.text("%");
                    1
                }
                (Some('t'), ..) => {
                    self.text("\t");
                    1
                }
                (Some(digit @ '1'..='9'), Some('f'), _) => {
                    self.pieces
                        .push(Piece::Fraction(u32::from(digit) - u32::from('0')));
                    2
                }
                (Some('E'), Some('4'), Some('Y')) => {
                    self.pieces.push(Piece::Year);
                    3
                }
                (Some('E'), Some('T'), _) => {
                    self.text("T");
                    2
                }
                (Some('E'), Some('z'), _) => {
                    self.text("+00:00");
                    2
                }
                (Some('E'), Some('*'), Some('z')) => {
                    self.text("+00:00:00");
                    3
                }
                (Some('E'), Some('*'), Some(letter @ ('S' | 'f'))) => {
                    self.pieces.push(Piece::Shortest(letter == 'S'));
                    3
                }
                (Some('E'), Some(digit @ '0'..='9'), Some(letter @ ('S' | 'f'))) => {
                    if letter == 'S' {
                        self.pieces.push(Piece::Field('S'));
                    }
                    if digit != '0' {
                        self.text(if letter == 'S' { "." } else { "" });
                        self.pieces
                            .push(Piece::Fraction(u32::from(digit) - u32::from('0')));
                    }
                    3
                }
                (Some(letter), ..) => {
                    if let Some(all) = expansion(letter) {
                        self.read(all)?;
                    } else if FIELDS.contains(letter) {
                        self.pieces.push(Piece::Field(letter));
                    } else {
                        self.unknown.push(format!("%{letter}"));
                        self.text("%");
                        self.text(letter.encode_utf8(&mut [0; 4]));
                    }

                    letter.len_utf8()
                }
                (None, ..) => {
                    self.text("%");
                    0
                }
            };

            rest = &rest[used..];
        }

        self.text(rest);

        Ok(())
    }

    fn text(&mut self, text: &str) {
        match self.pieces.last_mut() {
            _ if text.is_empty() => {}
            Some(Piece::Text(before)) => before.push_str(text),
            _ => self.pieces.push(Piece::Text(text.to_owned())),
        }
    }

    /// Writes a moment.
    pub fn write(&self, at: SystemTime, out: &mut Vec<u8>) {
        if self.pieces.is_empty() {
            return digits::timestamp(at, out);
        }
        let day = Day::of(at);
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text.as_bytes()),
                Piece::Field(letter) => day.field(*letter, out),
                Piece::Fraction(wanted) => {
                    digits::padded(day.nanos / 10_u32.pow(9 - wanted), *wanted as usize, out);
                }
                Piece::Shortest(seconds) => {
                    if *seconds {
                        day.field('S', out);
                    }
                    if day.nanos > 0 {
                        if *seconds {
                            out.push(b'.');
                        }
                        digits::padded(day.nanos, 9, out);
                        while out.last() == Some(&b'0') {
                            out.pop();
                        }
                    } else if !seconds {
                        out.push(b'0');
                    }
                }
                Piece::Year => digits::padded(day.year, 4, out),
            }
        }
    }
}

/// English names, of which three letters are the short form.
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

/// A moment, taken apart.
struct Day {
    seconds: u64,
    nanos: u32,
    year: u32,
    /// 1 to 12.
    month: u32,
    day: u32,
    /// From Sunday, 0.
    weekday: u32,
    /// From 0.
    of_year: u32,
    /// Of the day.
    second: u32,
}

impl Day {
    fn of(at: SystemTime) -> Self {
        let since = at
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let days = since.as_secs() / 86_400;
        let (year, month, day) = digits::civil(days);
        let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
        let of_year =
            before[(month as usize + 11) % 12] + day - 1 + u32::from(month > 2 && is_leap(year));

        Self {
            seconds: since.as_secs(),
            nanos: since.subsec_nanos(),
            year,
            month,
            day,
            // 1970 began on a Thursday.
            weekday: ((days + 4) % 7) as u32,
            of_year,
            second: (since.as_secs() % 86_400) as u32,
        }
    }

    /// ISO 8601: a week belongs to the year that its Thursday is in.
    fn iso_week(&self) -> (u32, u32) {
        let from_monday = (self.weekday + 6) % 7;
        let week = (self.of_year + 10 - from_monday) / 7;
        let first = |of_year: u32| (from_monday + 371 - of_year) % 7;
        let is_long = |first: u32, year: u32| first == 3 || (first == 2 && is_leap(year));

        if week == 0 {
            let before = self.year.saturating_sub(1);
            let length = 365 + u32::from(is_leap(before));
            return (
                before,
                52 + u32::from(is_long((first(self.of_year) + 371 - length) % 7, before)),
            );
        }

        if week == 53 && !is_long(first(self.of_year), self.year) {
            return (self.year + 1, 1);
        }

        (self.year, week)
    }

    fn field(&self, letter: char, out: &mut Vec<u8>) {
        let (hour, minute, second) = (self.second / 3600, self.second / 60 % 60, self.second % 60);
        let twelve = (hour + 11) % 12 + 1;
        let (month, weekday) = (
            MONTHS[(self.month as usize + 11) % 12],
            DAYS[self.weekday as usize % 7],
        );

        let two = |value: u32, out: &mut Vec<u8>| digits::padded(value, 2, out);
        let spaced = |value: u32, out: &mut Vec<u8>| {
            if value < 10 {
                out.push(b' ');
            }
            digits::integer(value, out);
        };

        match letter {
            'a' => out.extend_from_slice(&weekday.as_bytes()[..3]),
            'A' => out.extend_from_slice(weekday.as_bytes()),
            'b' | 'h' => out.extend_from_slice(&month.as_bytes()[..3]),
            'B' => out.extend_from_slice(month.as_bytes()),
            'C' => two(self.year / 100, out),
            'd' => two(self.day, out),
            'e' => spaced(self.day, out),
            'g' => two(self.iso_week().0 % 100, out),
            'G' => digits::integer(self.iso_week().0, out),
            'H' => two(hour, out),
            'I' => two(twelve, out),
            'j' => digits::padded(self.of_year + 1, 3, out),
            'k' => spaced(hour, out),
            'l' => spaced(twelve, out),
            'm' => two(self.month, out),
            'M' => two(minute, out),
            'p' => out.extend_from_slice(if hour < 12 { b"AM" } else { b"PM" }),
            'P' => out.extend_from_slice(if hour < 12 { b"am" } else { b"pm" }),
            's' => digits::integer(self.seconds, out),
            'S' => two(second, out),
            'u' => digits::integer((self.weekday + 6) % 7 + 1, out),
            'U' => two((self.of_year + 7 - self.weekday) / 7, out),
            'V' => two(self.iso_week().1, out),
            'w' => digits::integer(self.weekday, out),
            'W' => two((self.of_year + 7 - (self.weekday + 6) % 7) / 7, out),
            'y' => two(self.year % 100, out),
            'Y' => digits::integer(self.year, out),
            'z' => out.extend_from_slice(b"+0000"),
            'Z' => out.extend_from_slice(b"UTC"),
            // 'f'
            _ => digits::padded(self.nanos, 9, out),
        }
    }
}

fn is_leap(year: u32) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

/// RFC 9110 §5.6.7: `Sun, 06 Nov 1994 08:49:37 GMT`.
pub fn write_http_date(seconds: u64, out: &mut Vec<u8>) {
    let day = Day::of(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    let text = |text: &[u8], out: &mut Vec<u8>| out.extend_from_slice(text);
    let field = |letter: char, after: &[u8], out: &mut Vec<u8>| {
        day.field(letter, out);
        text(after, out);
    };

    field('a', b", ", out);
    field('d', b" ", out);
    field('b', b" ", out);
    digits::padded(day.year, 4, out);
    text(b" ", out);
    field('H', b":", out);
    field('M', b":", out);
    field('S', b" GMT", out);
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::Stdio;

    use super::*;

    fn show(millis: u64, format: &str) -> String {
        let mut out = Vec::new();
        TimeFormat::parse(format).expect(format).write(
            SystemTime::UNIX_EPOCH + Duration::from_millis(millis),
            &mut out,
        );
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn times_are_utc() {
        let at = |format| show(1_709_210_096_007, format);
        assert_eq!(at(""), "2024-02-29T12:34:56.007Z");
        assert_eq!(at("%s.%6f 100%%"), "1709210096.007000 100%");
        assert_eq!(at("%Y/%m/%d %H:%M:%S.%3f"), "2024/02/29 12:34:56.007");
        assert_eq!(
            at("%d %b %F %T %z %Z %q %"),
            "29 Feb 2024-02-29 12:34:56 +0000 UTC %q %"
        );

        assert_eq!(
            at("%a %A %B %h %C %D %R %e %I %p %P %j %y"),
            "Thu Thursday February Feb 20 02/29/24 12:34 29 12 PM pm 060 24"
        );

        assert_eq!(
            at("%c|%x|%X|%r"),
            "Thu Feb 29 12:34:56 2024|02/29/24|12:34:56|12:34:56 PM"
        );

        assert_eq!(
            at("%E3S %E0S %E*S %E2f %E*f %E4Y %ET %Ez %E*z"),
            "56.007 56 56.007 00 007 2024 T +00:00 +00:00:00"
        );

        assert_eq!(at("%é"), "%é");
        assert_eq!(show(0, "%E*S %E*f %k|%l"), "00 0  0|12");
    }

    #[test]
    fn what_is_unknown_is_told_and_a_line_feed_is_refused() {
        assert_eq!(
            TimeFormat::parse("%F %q %-d").expect("parses").unknown(),
            ["%q", "%-"]
        );
        assert!(TimeFormat::parse("%F%n").is_err());
    }

    /// Of the system's own `date`, whose calendar is another one's work.
    #[test]
    fn weeks_and_days_are_as_date_has_them() {
        let format = "%a %j %u %w %U %W %V %G %g %e %k %l";

        // Around the turn of years that begin on every weekday, leap years among them.
        let mut moments: Vec<u64> = Vec::new();
        for year in [
            1970_u64, 1977, 1981, 1992, 1999, 2000, 2004, 2008, 2009, 2010, 2015, 2020, 2021, 2026,
            2027, 2032,
        ] {
            let first = (year - 1970) * 365 + (year - 1969) / 4;
            moments.extend(
                (0..8)
                    .filter_map(|day| (first + day).checked_sub(4))
                    .map(|day| day * 86_400 + 7 * 3600),
            );
        }

        let input: String = moments.iter().map(|at| format!("@{at}\n")).collect();
        let mut date = std::process::Command::new("date");
        date.args(["-u", "-f", "-"])
            .arg(format!("+{format}"))
            .env("LC_ALL", "C");
        let mut date = date
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("date runs");

        date.stdin
            .take()
            .expect("piped")
            .write_all(input.as_bytes())
            .expect("written");

        let output = date.wait_with_output().expect("date ends");
        let theirs = String::from_utf8(output.stdout).expect("text");
        let ours: String = moments
            .iter()
            .map(|at| show(at * 1000, format) + "\n")
            .collect();

        assert!(!theirs.is_empty());
        assert_eq!(ours, theirs);
    }

    #[test]
    fn dates_are_as_http_writes_them() {
        let mut out = Vec::new();
        write_http_date(784_111_777, &mut out);
        assert_eq!(out, b"Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
