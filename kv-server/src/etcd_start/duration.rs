//! Durations as Go writes them.

use std::time::Duration;

/// Parses a duration such as `1h30m`, `1.5s` or `300ms` that is not negative.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "it must be a duration, for example 300ms, 10s or 1h30m".to_owned();
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..number_end].parse().map_err(|_| wrong())?;
        rest = &rest[number_end..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match &rest[..unit_end] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        rest = &rest[unit_end..];
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        total = total.checked_add(part).ok_or_else(wrong)?;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_go_are_read_and_others_refused() {
        let ms = Duration::from_millis;
        for (text, expected) in [
            ("0", Duration::ZERO),
            ("300ms", ms(300)),
            ("1h30m", ms(5_400_000)),
            ("1.5s", ms(1500)),
            ("2m0.5s", ms(120_500)),
            ("5000000ns", ms(5)),
            ("7µs", Duration::from_micros(7)),
        ] {
            assert_eq!(parse_duration(text), Ok(expected), "{text}");
        }
        for wrong in ["", "5", "5 m", "m", "-1s", "1d", "1s2", ".s", "999999999999999999999h"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
