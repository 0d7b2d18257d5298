//! Numbers, addresses and times as text, for what is written on every request: without `std::fmt`.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

/// Writes a number in decimal.
pub fn integer(value: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Writes a number in decimal with leading zeros, for values that have no more than `width` digits.
pub fn padded(value: u32, width: usize, out: &mut Vec<u8>) {
    let mut text = itoa::Buffer::new();
    let text = text.format(value);
    out.extend(std::iter::repeat_n(b'0', width.saturating_sub(text.len())));
    out.extend_from_slice(text.as_bytes());
}

/// Writes an address without a port.
pub fn ip(address: IpAddr, out: &mut Vec<u8>) {
    match address {
        IpAddr::V4(address) => {
            for (at, octet) in address.octets().into_iter().enumerate() {
                if at > 0 {
                    out.push(b'.');
                }
                integer(octet, out);
            }
        }
        // Writing to memory cannot fail.
        IpAddr::V6(address) => drop(write!(out, "{address}")),
    }
}

/// Writes an address with its port, and IPv6 in the brackets of RFC 3986.
pub fn address(address: SocketAddr, out: &mut Vec<u8>) {
    match address {
        SocketAddr::V4(address) => {
            ip((*address.ip()).into(), out);
            out.push(b':');
            integer(address.port(), out);
        }
        SocketAddr::V6(address) => drop(write!(out, "{address}")),
    }
}

/// Writes a time in UTC as Envoy's logs do: `2024-02-29T12:34:56.007Z`.
pub fn timestamp(at: SystemTime, out: &mut Vec<u8>) {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    date(since, out);
    out.push(b'T');
    clock(since, out);
    out.push(b'.');
    padded(since.subsec_millis(), 3, out);
    out.push(b'Z');
}

/// `2024-02-29`, of the time since 1970.
pub fn date(since: Duration, out: &mut Vec<u8>) {
    let (year, month, day) = civil(since.as_secs() / 86_400);
    padded(year, 4, out);
    out.push(b'-');
    padded(month, 2, out);
    out.push(b'-');
    padded(day, 2, out);
}

/// `12:34:56`, of the time since 1970.
pub fn clock(since: Duration, out: &mut Vec<u8>) {
    // Below 86,400.
    let second = (since.as_secs() % 86_400) as u32;
    padded(second / 3600, 2, out);
    out.push(b':');
    padded(second / 60 % 60, 2, out);
    out.push(b':');
    padded(second % 60, 2, out);
}

/// Days since 1970 as year, month and day. Howard Hinnant, "chrono-compatible low-level date
/// algorithms".
pub fn civil(days: u64) -> (u32, u32, u32) {
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);

    (
        u32::try_from(year).unwrap_or(u32::MAX),
        month as u32,
        (doy - (153 * mp + 2) / 5 + 1) as u32,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("ASCII")
    }

    #[test]
    fn text_is_as_the_standard_library_writes_it() {
        for given in [
            "0.0.0.0:0",
            "10.44.0.107:65535",
            "[::1]:80",
            "[2001:db8::ffff]:9080",
        ] {
            let parsed: SocketAddr = given.parse().expect(given);
            assert_eq!(text(|out| address(parsed, out)), given);
            assert_eq!(text(|out| ip(parsed.ip(), out)), parsed.ip().to_string());
        }

        assert_eq!(text(|out| integer(u64::MAX, out)), u64::MAX.to_string());
        assert_eq!(text(|out| padded(7, 3, out)), "007");
        assert_eq!(text(|out| padded(1234, 3, out)), "1234");
    }

    #[test]
    fn days_that_calendars_get_wrong() {
        for (seconds, wanted) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_827_696, "2000-02-29T12:34:56.000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(text(|out| timestamp(at, out)), wanted);
        }
    }
}
