//! The page's own files, compiled in. Their paths have a hash of their content, so browsers may keep them for ever
//! and an update is never mixed with what they kept.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use sha2::{Digest, Sha256};

/// What a browser does with a file whose path names its content.
const FOR_EVER: &str = "public, max-age=31536000, immutable";

/// One file.
pub(super) struct Asset {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
    /// Where it is served.
    pub(super) path: String,
}

impl Asset {
    fn new(name: &'static str, kind: &'static str, text: &'static str) -> Asset {
        let hash: String = Sha256::digest(text)[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        Asset { name, kind, text, path: format!("/assets/{hash}/{name}") }
    }
}

/// The style sheet.
pub(super) static STYLE: LazyLock<Asset> = LazyLock::new(|| {
    const TEXT: &str = concat!(include_str!("assets/base.css"), include_str!("assets/parts.css"));
    Asset::new("style.css", "text/css; charset=utf-8", TEXT)
});
/// Sets a chosen theme before anything is drawn.
pub(super) static THEME: LazyLock<Asset> = LazyLock::new(|| {
    Asset::new("theme.js", "text/javascript; charset=utf-8", include_str!("assets/theme.js"))
});
/// What makes the page live.
pub(super) static SCRIPT: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("page.js", "text/javascript; charset=utf-8", include_str!("assets/page.js")));
/// The icon of the browser's tab.
pub(super) static FAVICON: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("favicon.svg", "image/svg+xml", include_str!("assets/favicon.svg")));

/// `GET /assets/{hash}/{name}`.
pub(super) async fn serve(Path((hash, name)): Path<(String, String)>) -> Response {
    let all: [&Asset; 4] = [&STYLE, &THEME, &SCRIPT, &FAVICON];
    let path = format!("/assets/{hash}/{name}");
    match all.into_iter().find(|asset| asset.name == name && asset.path == path) {
        Some(asset) => ([(CONTENT_TYPE, asset.kind), (CACHE_CONTROL, FOR_EVER)], asset.text).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_served_under_its_own_hash_only() {
        let (hash, name) = STYLE.path.strip_prefix("/assets/").unwrap().split_once('/').unwrap();
        let served = serve(Path((hash.into(), name.into()))).await;
        assert_eq!(served.status(), StatusCode::OK);
        assert_eq!(served.headers()[CACHE_CONTROL], FOR_EVER);
        assert_eq!(served.headers()[CONTENT_TYPE], "text/css; charset=utf-8");
        for (hash, name) in [("0000000000000000", name), (hash, "page.js"), (hash, "../base.css")] {
            let served = serve(Path((hash.into(), name.into()))).await;
            assert_eq!(served.status(), StatusCode::NOT_FOUND, "{hash}/{name}");
        }
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere() {
        for asset in [&*STYLE, &*THEME, &*SCRIPT, &*FAVICON] {
            let text = asset.text.replace("http://www.w3.org/2000/svg", "");
            for bad in ["http:", "https:", "@import", "eval(", "innerHTML"] {
                assert!(!text.contains(bad), "{} contains {bad}", asset.name);
            }
        }
    }
}
