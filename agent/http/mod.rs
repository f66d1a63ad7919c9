//! The HTTP listener: health answers and the whole picture, from memory. Nothing here asks anybody or changes anything.

mod bounded;
mod health;
mod status;

use crate::page::Pages;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bounded::Bounded;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Open connections have this long to end when the agent stops.
const GOODBYE: Duration = Duration::from_secs(2);

/// There is no listener.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {listen} ([http] listen)")]
pub struct BindError {
    listen: String,
    source: std::io::Error,
}

/// Binds the listener, or takes the one that systemd passed.
///
/// # Errors
/// When the address is taken or not ours.
pub async fn bind(listen: &str, inherited: Option<std::net::TcpListener>) -> Result<TcpListener, BindError> {
    let bound = match inherited {
        Some(listener) => listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener)),
        None => TcpListener::bind(listen).await,
    };
    bound.map_err(|source| BindError { listen: listen.to_owned(), source })
}

/// Serves until `stop`; open connections then have a short time to end.
pub async fn serve(listener: TcpListener, pages: Pages, stop: CancellationToken) {
    let app = Router::new().fallback(answer).with_state(pages);
    let server = axum::serve(Bounded::new(listener), app);
    let stopping = stop.clone().cancelled_owned();
    let served = async move { server.with_graceful_shutdown(stopping).await };
    let last = async {
        stop.cancelled().await;
        tokio::time::sleep(GOODBYE).await;
    };
    tokio::select! {
        result = served => if let Err(e) = result { tracing::error!("the HTTP listener ended: {e}") },
        () = last => tracing::debug!("some HTTP connections did not end in time"),
    }
}

/// One answer before it becomes HTTP.
#[derive(Debug, PartialEq)]
struct Answer {
    code: StatusCode,
    body: Value,
    /// For Envoy: which cluster was asked about. Verdicts only.
    scope: Option<String>,
}

impl Answer {
    fn plain(code: StatusCode, body: Value) -> Self {
        Answer { code, body, scope: None }
    }

    fn sentence(code: StatusCode, sentence: impl Into<String>) -> Self {
        Answer::plain(code, json!({ "error": sentence.into() }))
    }
}

async fn answer(State(pages): State<Pages>, request: Request) -> Response {
    let path = request.uri().path();
    // GET, HEAD and OPTIONS differ in what goes over the wire only; the server drops the body of HEAD.
    let answer = match (route(path, &pages), request.method()) {
        (Some(answer), &Method::GET | &Method::HEAD | &Method::OPTIONS) => answer,
        (Some(_), _) => return not_allowed().into_response(),
        (None, _) => {
            Answer::sentence(StatusCode::NOT_FOUND, format!("nothing is served at {path}; see /status"))
        }
    };
    answer.into_response()
}

fn route(path: &str, pages: &Pages) -> Option<Answer> {
    match path {
        "/status" => Some(status::page(pages)),
        "/liveness" | "/readiness" => Some(health::agent(pages.alive(crate::clock::now()))),
        path => health::verdict(path, &pages.status(), crate::clock::now()),
    }
}

fn not_allowed() -> Response {
    let answer = Answer::sentence(StatusCode::METHOD_NOT_ALLOWED, "nothing can be changed here: use GET");
    let mut response = answer.into_response();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
    response
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut body = self.body.to_string();
        body.push('\n');
        let mut response = (self.code, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        // A scope that no header can carry is left out: the answer itself matters more.
        if let Some(scope) = self.scope.and_then(|scope| HeaderValue::from_bytes(scope.as_bytes()).ok()) {
            headers.insert("x-envoy-upstream-healthchecked-cluster", scope);
        }
        response
    }
}
