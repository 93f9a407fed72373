//! Makes the HTTP response of an [`Outcome`]: the only place that knows status codes, headers and bodies.

use std::borrow::Cow;
use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::header::{
    ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderValue, LAST_MODIFIED, RETRY_AFTER, SERVER,
};
use hyper::http::response::Parts;
use hyper::{StatusCode, Version};
use ring::digest::{SHA256, digest};
use serde::Serialize;

use super::headers::{SERVER_NAME, TOKEN_TTL};
use super::outcome::{InvalidRequest, Outcome};
use super::passthrough::body::{PassthroughBody, strip};
use super::passthrough::{NodeAnswer, PassthroughError};
use crate::credentials::timestamp;
use crate::roles::RoleArn;

/// A response: its body is our own, or streams from the node's metadata service.
pub type Response = hyper::Response<Either<Full<Bytes>, PassthroughBody>>;

/// The code of a credentials document that SDKs report as a failure to assume the role.
pub const REFUSED_CODE: &str = "AssumeRoleUnauthorizedAccess";

/// Makes the response. `token_left` is what remains of the lifetime of the session token that came with the request.
pub fn of(outcome: Outcome, token_left: Option<Duration>) -> Response {
    let status = status(&outcome);
    let allowed = allowed_methods(&outcome);
    let mut response = match outcome {
        Outcome::IamEntries => resource("info\nsecurity-credentials/"),
        Outcome::RoleName(name) => resource(name),
        Outcome::RoleInfo(role) => info(&role, SystemTime::now()),
        Outcome::Credentials { session, extended } => resource(if extended {
            session.extended_document()
        } else {
            session.document()
        }),
        Outcome::Token { token, ttl } => {
            let mut response = new(status, "text/plain", token);
            response.headers_mut().insert(TOKEN_TTL, HeaderValue::from(ttl));
            response
        }
        Outcome::Node(answer) => match *answer {
            NodeAnswer::Streamed(response) => from_node(response),
            NodeAnswer::Listing { head, visible } => listing_from_node(head, visible),
        },
        Outcome::Refused(ref reason) => refused(&reason.to_string(), SystemTime::now()),
        ref failed => failure(status, &failed.sentence().unwrap_or_default()),
    };
    if let Some(allowed) = allowed {
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static(allowed));
    }
    if let Some(left) = token_left {
        response
            .headers_mut()
            .insert(TOKEN_TTL, HeaderValue::from(left.as_secs()));
    }
    response
}

/// Returns the status code of an outcome.
pub fn status(outcome: &Outcome) -> StatusCode {
    match outcome {
        Outcome::IamEntries
        | Outcome::RoleName(_)
        | Outcome::RoleInfo(_)
        | Outcome::Credentials { .. }
        | Outcome::Token { .. }
        // SDKs read the reason from the document's code and message.
        | Outcome::Refused(_) => StatusCode::OK,
        Outcome::Node(answer) => match &**answer {
            NodeAnswer::Streamed(response) => response.status(),
            NodeAnswer::Listing { head, .. } => head.status,
        },
        Outcome::NoRole(_) | Outcome::OtherRole { .. } | Outcome::PathRefused(_) => StatusCode::NOT_FOUND,
        Outcome::Unauthorized(_) => StatusCode::UNAUTHORIZED,
        Outcome::Unavailable(_)
        | Outcome::TokenUnavailable(_)
        | Outcome::NodeUnavailable(PassthroughError::Busy(_) | PassthroughError::Upstream(_)) => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        Outcome::NodeUnavailable(PassthroughError::TooLong) => StatusCode::BAD_GATEWAY,
        Outcome::Invalid(problem) => match problem {
            InvalidRequest::Forwarded => StatusCode::FORBIDDEN,
            InvalidRequest::Target | InvalidRequest::TokenTtl => StatusCode::BAD_REQUEST,
            InvalidRequest::TokenMethod | InvalidRequest::Method => StatusCode::METHOD_NOT_ALLOWED,
            InvalidRequest::BodyTooLong => StatusCode::PAYLOAD_TOO_LARGE,
            InvalidRequest::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
        },
    }
}

fn new(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.reserve(6);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(SERVER, SERVER_NAME);
    response
}

/// Makes a response of status 200 as the metadata service does for a resource: exactly these bytes, without a newline
/// after them.
fn resource(body: impl Into<Bytes>) -> Response {
    let mut response = new(StatusCode::OK, "text/plain", body);
    let headers = response.headers_mut();
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("none"));
    if let Some(now) = date_now() {
        headers.insert(LAST_MODIFIED, now);
    }
    response
}

/// Returns the methods that the path supports, for a response of status 405.
fn allowed_methods(outcome: &Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::Invalid(InvalidRequest::TokenMethod) => Some("PUT"),
        Outcome::Invalid(InvalidRequest::Method) => Some("GET, HEAD"),
        _ => None,
    }
}

/// Makes the response for `iam/info`. A pod's role has no instance profile, but clients that request one take the
/// last part of its ARN as the role's name.
fn info(role: &RoleArn, now: SystemTime) -> Response {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Info {
        code: &'static str,
        last_updated: String,
        instance_profile_arn: String,
        instance_profile_id: String,
    }
    let (partition, account, name) = (role.partition(), role.account(), role.name());
    // An ID has 17 base-32 characters after the prefix (IAM user guide, "unique identifiers"). It must stay the same
    // for a role, so it is derived from the ARN.
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let hash = digest(&SHA256, role.as_str().as_bytes());
    let id = hash
        .as_ref()
        .iter()
        .take(17)
        .map(|byte| char::from(digits[usize::from(byte % 32)]));
    let info = Info {
        code: "Success",
        last_updated: timestamp(now),
        instance_profile_arn: format!("arn:{partition}:iam::{account}:instance-profile/{name}"),
        instance_profile_id: format!("AIPA{}", id.collect::<String>()),
    };
    resource(serde_json::to_vec_pretty(&info).unwrap_or_default())
}

/// Makes the response from the streamed answer of the node's metadata service.
fn from_node(response: hyper::Response<PassthroughBody>) -> Response {
    let (mut head, body) = response.into_parts();
    strip(&mut head.headers);
    // The version of the node's answer is that of another hop. In HTTP/1.0, the pod could not distinguish a body that
    // was cut off from a complete one.
    head.version = Version::HTTP_11;
    Response::from_parts(head, Either::Right(body))
}

/// Makes the response from the part of a listing that the pod may see.
fn listing_from_node(mut head: Parts, visible: String) -> Response {
    strip(&mut head.headers);
    // Both describe the whole listing.
    for name in [CONTENT_LENGTH, ETAG] {
        head.headers.remove(name);
    }
    head.version = Version::HTTP_11;
    Response::from_parts(head, Either::Left(Full::new(visible.into())))
}

/// Makes a credentials document without credentials, by which SDKs report a failure: 200, with a `Code` other than
/// `Success`.
fn refused(message: &str, now: SystemTime) -> Response {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Failure<'a> {
        code: &'a str,
        message: &'a str,
        last_updated: String,
    }
    let failure = Failure {
        code: REFUSED_CODE,
        message,
        last_updated: timestamp(now),
    };
    resource(serde_json::to_vec_pretty(&failure).unwrap_or_default())
}

/// Makes the HTML page of a failure, as the metadata service does. Clients look only at the status. The sentence is
/// for users who debug them.
fn failure(status: StatusCode, sentence: &str) -> Response {
    let title = status.canonical_reason().unwrap_or_default();
    let (code, sentence) = (status.as_u16(), escaped(sentence));
    let body = format!(
        "<!DOCTYPE html>\n<html><head><title>{code} - {title}</title></head>\n<body><h1>{code} - {title}</h1>\n\
         <p>{sentence}</p></body></html>\n"
    );
    let mut response = new(status, "text/html", body);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// Escapes text for HTML: sentences quote annotations, which are a user's text.
fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(['&', '<', '>']) {
        return Cow::Borrowed(text);
    }
    let escaped = text
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    Cow::Owned(escaped)
}

/// Returns the current time as an HTTP date (RFC 9110, 5.6.7). Each thread formats it once a second.
fn date_now() -> Option<HeaderValue> {
    thread_local! {
        static WRITTEN: RefCell<(u64, Option<HeaderValue>)> = const { RefCell::new((0, None)) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    WRITTEN.with_borrow_mut(|(at, written)| {
        if *at != second || written.is_none() {
            *at = second;
            *written = HeaderValue::from_str(&httpdate::fmt_http_date(now)).ok();
        }
        written.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imds::token::TokenKeyError;
    use crate::roles::Reason;
    use http_body_util::BodyExt as _;
    use rstest::rstest;

    async fn body(response: Response) -> String {
        let body = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn the_profile_in_info_names_the_role_and_has_a_valid_id() {
        let role: RoleArn = "arn:aws-cn:iam::123456789012:role/team/app".parse().unwrap();
        let info = body(info(&role, SystemTime::UNIX_EPOCH)).await;
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["Code"], "Success");
        assert_eq!(info["LastUpdated"], "1970-01-01T00:00:00Z");
        assert_eq!(
            info["InstanceProfileArn"],
            "arn:aws-cn:iam::123456789012:instance-profile/app"
        );
        let id = info["InstanceProfileId"].as_str().unwrap();
        assert!(id.starts_with("AIPA") && id.len() == 21, "{id}");
    }

    #[tokio::test]
    async fn text_of_an_annotation_is_no_markup() {
        let page = body(failure(StatusCode::NOT_FOUND, "<script>&</script>")).await;
        assert!(page.contains("&lt;script&gt;&amp;&lt;/script&gt;"), "{page}");
    }

    #[rstest]
    #[case(Outcome::Invalid(InvalidRequest::Method), 405, Some("GET, HEAD"), None)]
    #[case(Outcome::Invalid(InvalidRequest::TokenMethod), 405, Some("PUT"), None)]
    #[case(Outcome::Invalid(InvalidRequest::Forwarded), 403, None, None)]
    #[case(Outcome::TokenUnavailable(TokenKeyError::Random), 503, None, Some("1"))]
    #[case(Outcome::NodeUnavailable(PassthroughError::TooLong), 502, None, None)]
    fn a_failure_has_its_status_and_headers(
        #[case] outcome: Outcome,
        #[case] status: u16,
        #[case] allow: Option<&str>,
        #[case] retry: Option<&str>,
    ) {
        let response = of(outcome, None);
        let header = |name| response.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!(response.status(), status);
        assert_eq!((header(ALLOW), header(RETRY_AFTER)), (allow, retry));
        assert_eq!(header(SERVER), Some("EC2ws"));
    }

    #[test]
    fn every_response_has_the_remaining_lifetime_of_the_token() {
        for outcome in [
            Outcome::IamEntries,
            Outcome::TokenUnavailable(TokenKeyError::Random),
        ] {
            let response = of(outcome, Some(Duration::from_secs(17)));
            assert_eq!(response.headers()[TOKEN_TTL], "17");
        }
    }

    #[tokio::test]
    async fn a_refusal_is_a_document_that_sdks_report() {
        let reason = Reason::StsDenied {
            role: "arn:aws:iam::123456789012:role/app".parse().unwrap(),
            message: "AccessDenied".to_owned(),
        };
        let response = of(Outcome::Refused(reason.clone()), None);
        assert_eq!(response.status(), StatusCode::OK);
        let document: serde_json::Value = serde_json::from_str(&body(response).await).unwrap();
        assert_eq!(document["Code"], REFUSED_CODE);
        assert_eq!(document["Message"], reason.to_string());
    }
}
