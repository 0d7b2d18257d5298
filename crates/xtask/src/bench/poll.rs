//! Asks the same thing again and again and says when the answer's generation changes: the eye of
//! the propagation case.
//!
//! It runs inside a workload and prints `GENERATION NANOSECONDS-SINCE-1970` when a new one is seen,
//! and `closed` when somebody ends its connection.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

/// The response header that carries the generation.
pub const HEADER: &str = "x-generation";
/// Between two questions: how exact the figure is.
const PAUSE: Duration = Duration::from_millis(2);

/// `cargo xtask bench-poll HOST:PORT`, until the process ends.
pub fn run(words: &[String]) -> Result<()> {
    let address = words.first().context("bench-poll HOST:PORT")?;
    let mut seen = String::new();
    loop {
        let stream =
            TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream);
        loop {
            let sent = write!(
                reader.get_mut(),
                "GET / HTTP/1.1\r\nhost: {address}\r\n\r\n"
            );

            let Some(generation) = sent.and_then(|()| answer(&mut reader)).unwrap_or_default()
            else {
                break;
            };

            if generation != seen {
                println!("{generation} {}", now());
                seen = generation;
            }

            std::thread::sleep(PAUSE);
        }

        println!("closed");
    }
}

/// Nanoseconds since 1970.
pub fn now() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos()
}

/// The generation of one answer, empty if it names none; `None` at the connection's end.
fn answer(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<String>> {
    let (mut generation, mut length) = (String::new(), 0);
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let Some((name, value)) = line.trim_end().split_once(':') else {
            if line == "\r\n" {
                break;
            }
            continue;
        };

        if name.eq_ignore_ascii_case(HEADER) {
            generation = value.trim().to_owned();
        } else if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap_or_default();
        }
    }

    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;

    Ok(Some(generation))
}

/// What a poller says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// This generation was first seen at this time.
    Seen(u64, u128),
    /// Its connection was ended.
    Closed,
}

impl Word {
    /// Reads a line of a poller; lines before the first generation are `None`.
    pub fn parse(line: &str) -> Result<Option<Self>> {
        if line == "closed" {
            return Ok(Some(Self::Closed));
        }
        match line.split_once(' ') {
            Some(("", _)) => Ok(None),
            Some((generation, when)) => Ok(Some(Self::Seen(generation.parse()?, when.parse()?))),
            None => bail!("a poller says {line:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Word;

    #[test]
    fn words_are_read() {
        assert_eq!(Word::parse("7 12").unwrap(), Some(Word::Seen(7, 12)));
        assert_eq!(Word::parse("closed").unwrap(), Some(Word::Closed));
        assert_eq!(Word::parse(" 12").unwrap(), None);
        assert!(Word::parse("error").is_err());
    }
}
