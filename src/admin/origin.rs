//! What keeps web pages of others away from the admin API.
//!
//! It asks nobody who they are, and a browser posts wherever a page tells it to, without asking either
//! as long as the page does not want to see the answer. So a request that changes something is refused if a
//! browser says that it comes from somewhere else. Programs that are no browsers say nothing.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::routes::Refusal;

const REFUSED: &str = "a web page of another origin must not change anything here: use the segue command, or \
                       a program that sends no Origin";

/// Passes on what may be done.
pub(super) async fn guard(request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if reads || is_own(request.headers()) {
        next.run(request).await
    } else {
        Refusal(StatusCode::FORBIDDEN, REFUSED.into()).into_response()
    }
}

/// Whether no browser says that the request comes from a page of others.
fn is_own(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or(""));
    let site = text(header::HeaderName::from_static("sec-fetch-site"));
    if site.is_some_and(|site| !matches!(site, "same-origin" | "none")) {
        return false;
    }
    let Some(origin) = text(header::ORIGIN) else {
        return true;
    };
    let host = text(header::HOST).unwrap_or("");
    let origin = origin.split_once("://").map_or("", |(_, host)| host);
    origin.eq_ignore_ascii_case(host) && is_fixed(host)
}

/// Whether nobody can make the name mean another machine than it did when the browser loaded the page. A page
/// of others could come to our address that way, and be of its own origin there (DNS rebinding).
fn is_fixed(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else {
        return false;
    };
    let name = authority.host();
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_of_our_own_may_change_anything() {
        let own = "127.0.0.1:2381";
        for (host, origin, site, expected) in [
            (own, None, None, true),
            (own, Some("http://127.0.0.1:2381"), None, true),
            (
                own,
                Some("http://127.0.0.1:2381"),
                Some("same-origin"),
                true,
            ),
            (own, None, Some("none"), true),
            ("LocalHost:2381", Some("http://localhost:2381"), None, true),
            ("[::1]:2381", Some("http://[::1]:2381"), None, true),
            (own, Some("http://127.0.0.1:8080"), None, false),
            (own, Some("https://evil.example"), None, false),
            (own, Some("null"), None, false),
            (own, Some(""), None, false),
            ("", Some(""), None, false),
            (own, None, Some("cross-site"), false),
            (own, None, Some("same-site"), false),
            (
                own,
                Some("http://127.0.0.1:2381"),
                Some("cross-site"),
                false,
            ),
            // A name of theirs that has come to mean our address.
            (
                "evil.example:2381",
                Some("http://evil.example:2381"),
                None,
                false,
            ),
            (
                "evil.example:2381",
                Some("http://evil.example:2381"),
                Some("same-origin"),
                false,
            ),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
            }
            if let Some(site) = site {
                headers.insert("sec-fetch-site", site.parse().unwrap());
            }
            assert_eq!(is_own(&headers), expected, "{headers:?}");
        }
    }
}
