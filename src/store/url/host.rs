//! A host with its port.

/// Reads a host, IPv6 addresses in brackets and left so, and its port, which may be left out. An
/// error is the end of a sentence, and quotes nothing.
pub(super) fn parse(text: &str) -> Result<(String, Option<u16>), &'static str> {
    let text = text.trim();
    let (name, port) = match text.rsplit_once(':') {
        // A colon within brackets belongs to an IPv6 address.
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (text, None),
    };
    let address = name
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    match address {
        Some(address) if address.parse::<std::net::Ipv6Addr>().is_err() => {
            return Err("an IPv6 address stands in the brackets of [ADDRESS]:PORT");
        }
        None if name.is_empty() => return Err("its name is missing"),
        None if name.contains(':') => return Err("an IPv6 address needs brackets: [ADDRESS]:PORT"),
        None if !name.chars().all(is_name) => {
            return Err("its name has characters that no host has");
        }
        Some(_) | None => {}
    }
    let port = match port.map(str::parse) {
        None => None,
        Some(Ok(0) | Err(_)) => return Err("its port is not a number from 1 to 65535"),
        Some(Ok(port)) => Some(port),
    };
    Ok((name.to_owned(), port))
}
