//! Quantities for people to read.

/// Bytes with a binary unit and three digits or so: `512 B`, `1.50 KiB`, `15.0 GiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value < 10.0 { 2 } else { 1 };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// Reads a number of bytes, more than 0: `4096`, `1.5G`, `512MiB`; units are powers of 1024.
///
/// # Errors
/// What is needed instead.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let unit = unit.trim_end_matches('b').trim_end_matches('i');
    let power = ["", "k", "m", "g", "t"].iter().position(|u| *u == unit);
    let bytes = |power| Some((number.parse::<f64>().ok()? * 1024f64.powi(power as i32)) as u64);
    match power.and_then(bytes) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err("a size above 0 is needed, such as 12G or 800M".to_owned()),
    }
}

/// A count with its thousands set apart: `1,048,576`.
pub fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A fraction as a percentage with one digit: `50.0 %`.
pub fn percent(fraction: f64) -> String {
    format!("{:.1} %", fraction * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("4096", 4096),
            ("1.5G", 3 << 29),
            ("512MiB", 512 << 20),
            ("2 kb", 2048),
            ("1T", 1 << 40),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "0", "0G", "12Q", "1.2.3", "-1", "1e3"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn quantities_are_short() {
        let table = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536, "1.50 KiB"),
            (1024 * 1024 - 1, "1.00 MiB"),
            (16 << 30, "16.0 GiB"),
            (u64::MAX, "16777216.0 TiB"),
        ];
        for (value, text) in table {
            assert_eq!(bytes(value), text);
        }
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_048_576), "1,048,576");
        assert_eq!(percent(0.5), "50.0 %");
    }
}
