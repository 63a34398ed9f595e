use super::*;
use document::finish;

/// The document with all that it says, as it is served.
fn document() -> utoipa::openapi::OpenApi {
    let open = open().split_for_parts().1;
    let mut all = guarded().split_for_parts().1;
    all.merge(open);
    finish(all)
}

#[test]
fn every_route_says_what_it_answers_where_it_goes_wrong() {
    let document = document();
    assert!(document.paths.paths.len() >= 15, "{:?}", document.paths.paths.keys());
    for (path, item) in &document.paths.paths {
        for operation in [&item.get, &item.post, &item.patch, &item.delete].into_iter().flatten() {
            let responses = &operation.responses.responses;
            assert!(responses.contains_key("4XX") && responses.contains_key("5XX"), "{path}");
            assert!(responses.keys().any(|status| status.starts_with('2')), "{path}");
            assert!(operation.summary.is_some() && operation.tags.is_some(), "{path}");
        }
    }
}
