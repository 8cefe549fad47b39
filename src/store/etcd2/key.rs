//! Keys of ours as paths of nodes, and back.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What is written as `%XX` in the path of a request: all but letters, digits and what is safe in
/// every part of a URL, and the slashes that part the names.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');

/// The path of the node that `key` is, or nothing if no node can have this key: v2 would clean the
/// path up and answer with another key's value.
pub(super) fn path(key: &[u8]) -> Option<&str> {
    let path = std::str::from_utf8(key).ok()?;
    path.strip_prefix('/')?
        .split('/')
        .all(is_shown)
        .then_some(path)
}

/// The path of the directory whose keys all begin with `prefix`, which ends with a slash.
pub(super) fn directory(prefix: &[u8]) -> Option<&str> {
    match prefix {
        b"/" => Some("/"),
        _ => path(prefix.strip_suffix(b"/")?),
    }
}

/// Whether a node of this name can exist and be seen.
fn is_shown(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.starts_with('_')
}

/// `path` as it stands in a request.
pub(super) fn encode(path: &str) -> String {
    utf8_percent_encode(path, ENCODED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_that_a_node_can_have_are_asked_for() {
        for (key, possible) in [
            (&b"/a"[..], true),
            (b"/a/b c/%41", true),
            ("/ä/…".as_bytes(), true),
            (b"/a./..b", true),
            (b"/a_", true),
            (b"a", false),
            (b"", false),
            (b"/", false),
            (b"/a/", false),
            (b"//a", false),
            (b"/a//b", false),
            (b"/./a", false),
            (b"/a/..", false),
            (b"/_a", false),
            (b"/a/_b/c", false),
            (b"/\xff", false),
        ] {
            assert_eq!(path(key).is_some(), possible, "{}", key.escape_ascii());
        }
        assert_eq!(directory(b"/"), Some("/"));
        assert_eq!(directory(b"/a/b/"), Some("/a/b"));
        assert_eq!(directory(b"/_a/"), None);
        assert_eq!(encode("/a b/%/ü?#"), "/a%20b/%25/%C3%BC%3F%23");
    }
}
