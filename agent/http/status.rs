//! `/status`: the whole picture, whatever it shows.

use super::Answer;
use crate::page::Pages;
use axum::http::StatusCode;

/// Always 200, unless the picture itself cannot be drawn.
pub(super) fn page(pages: &Pages) -> Answer {
    match pages.json() {
        Ok(page) => Answer::plain(StatusCode::OK, page),
        Err(e) => {
            let sentence = format!("the status has no JSON: {e}");
            Answer::sentence(StatusCode::INTERNAL_SERVER_ERROR, sentence)
        }
    }
}
