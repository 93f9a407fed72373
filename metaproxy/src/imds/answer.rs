//! Responses, as the metadata service words and heads them.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT_RANGES, CONTENT_TYPE, HeaderValue, LAST_MODIFIED, RETRY_AFTER, SERVER};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::credentials::Session;

/// What a response carries.
pub type Answer = Response<Full<Bytes>>;

/// The life of a token, in seconds: asked for with it, and told with each answer to a request that brings one.
pub const TOKEN_TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";

/// What the metadata service calls itself.
const EC2: HeaderValue = HeaderValue::from_static("EC2ws");

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(SERVER, EC2);
    response
}

/// 200, as a resource of the metadata service: exactly these bytes, no newline after them.
fn resource(body: impl Into<Bytes>) -> Answer {
    let mut response = answer(StatusCode::OK, "text/plain", body);
    let headers = response.headers_mut();
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("none"));
    if let Ok(now) = HeaderValue::from_str(&http_date(SystemTime::now())) {
        headers.insert(LAST_MODIFIED, now);
    }
    response
}

/// The list of roles: one name.
pub fn role_list(name: &str) -> Answer {
    resource(Bytes::copy_from_slice(name.as_bytes()))
}

/// The credentials.
pub fn credentials(session: &Session) -> Answer {
    resource(session.document())
}

/// A document with which SDKs report a failure: 200, with a `Code` that is not `Success`.
pub fn unauthorized(message: &str, now: &str) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Failure<'a> {
        code: &'a str,
        message: &'a str,
        last_updated: &'a str,
    }
    let failure = Failure {
        code: "AssumeRoleUnauthorizedAccess",
        message,
        last_updated: now,
    };
    resource(serde_json::to_vec_pretty(&failure).unwrap_or_default())
}

/// A token: exactly its characters, and the life that was asked for.
pub fn token(token: String, ttl: u64) -> Answer {
    let mut response = answer(StatusCode::OK, "text/plain", token);
    response.headers_mut().insert(TOKEN_TTL, HeaderValue::from(ttl));
    response
}

/// A failure, with a sentence for people. Clients look at the status only.
pub fn failure(status: StatusCode, sentence: &str) -> Answer {
    let title = status.canonical_reason().unwrap_or_default();
    let (code, sentence) = (status.as_u16(), escaped(sentence));
    let body = format!(
        "<!DOCTYPE html>\n<html><head><title>{code} - {title}</title></head>\n<body><h1>{code} - {title}</h1>\n\
         <p>{sentence}</p></body></html>\n"
    );
    let mut response = answer(status, "text/html", body);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// Tells what is left of the token that came with a request.
pub fn with_token_left(mut response: Answer, left: Option<Duration>) -> Answer {
    if let Some(left) = left {
        response
            .headers_mut()
            .insert(TOKEN_TTL, HeaderValue::from(left.as_secs()));
    }
    response
}

/// Annotations end up in sentences, and sentences in HTML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// RFC 9110, 5.6.7.
fn http_date(time: SystemTime) -> String {
    httpdate::fmt_http_date(time)
}
