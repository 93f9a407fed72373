//! Responses, as the metadata service words and heads them.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderName, HeaderValue, LAST_MODIFIED,
    RETRY_AFTER, SERVER,
};
use hyper::http::response::Parts;
use hyper::{Response, StatusCode, Version};
use ring::digest::{SHA256, digest};
use serde::Serialize;

use super::passthrough::Permits;
use super::passthrough::body::{self as passthrough_body, PassthroughBody};
use crate::credentials::{Session, timestamp};
use crate::roles::RoleArn;

/// What a response carries: words of our own, or what the node's metadata service sends.
pub type Answer = Response<Either<Full<Bytes>, PassthroughBody>>;

/// A session token.
pub const TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");

/// The life of a token, in seconds: asked for with it, and told with each answer to a request that brings one.
pub const TOKEN_TTL: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");

/// What the metadata service calls itself.
const EC2: HeaderValue = HeaderValue::from_static("EC2ws");

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.reserve(6);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(SERVER, EC2);
    response
}

/// 200, as a resource of the metadata service: exactly these bytes, no newline after them.
fn resource(body: impl Into<Bytes>) -> Answer {
    let mut response = answer(StatusCode::OK, "text/plain", body);
    let headers = response.headers_mut();
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("none"));
    if let Some(now) = date_now() {
        headers.insert(LAST_MODIFIED, now);
    }
    response
}

/// The list of roles: one name.
pub fn role_list(name: &str) -> Answer {
    resource(Bytes::copy_from_slice(name.as_bytes()))
}

/// The list of `iam/`.
pub fn iam_list() -> Answer {
    resource("info\nsecurity-credentials/")
}

/// The credentials; those of `security-credentials-extended` tell the account.
pub fn credentials(session: &Session, extended: bool) -> Answer {
    resource(if extended {
        session.extended_document()
    } else {
        session.document()
    })
}

/// `iam/info`. A pod's role has no instance profile; clients that ask for one take the last part of its ARN for the
/// role's name.
pub fn info(role: &RoleArn, now: SystemTime) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Info {
        code: &'static str,
        last_updated: String,
        instance_profile_arn: String,
        instance_profile_id: String,
    }
    let (partition, account, name) = (role.partition(), role.account(), role.name());
    // 17 characters of base 32 after the prefix (IAM user guide, "unique identifiers"), the same for each role.
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

/// What the node's metadata service answers, on its way to a pod.
pub fn from_node(response: Response<Incoming>, permits: Permits) -> Answer {
    let (mut head, body) = response.into_parts();
    passthrough_body::strip(&mut head.headers);
    // The version is of that hop too; an older one has no way to tell a body that is cut off from a whole one.
    head.version = Version::HTTP_11;
    Response::from_parts(head, Either::Right(PassthroughBody::new(body, permits)))
}

/// A list of the node's metadata service, of which a pod is shown this much.
pub fn list_from_node(mut head: Parts, visible: String) -> Answer {
    passthrough_body::strip(&mut head.headers);
    // They are those of the whole list.
    for name in [CONTENT_LENGTH, ETAG] {
        head.headers.remove(name);
    }
    head.version = Version::HTTP_11;
    Response::from_parts(head, Either::Left(Full::new(visible.into())))
}

/// A document with which SDKs report a failure: 200, with a `Code` that is not `Success`.
pub fn unauthorized(message: &str, now: SystemTime) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Failure<'a> {
        code: &'a str,
        message: &'a str,
        last_updated: String,
    }
    let failure = Failure {
        code: "AssumeRoleUnauthorizedAccess",
        message,
        last_updated: timestamp(now),
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

/// 405, with the methods that there are.
pub fn not_that_method(allowed: &'static str, sentence: &str) -> Answer {
    let mut response = failure(StatusCode::METHOD_NOT_ALLOWED, sentence);
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allowed));
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

/// What a body of ours says, in words, and without what is secret of it.
pub fn in_words(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    // A name may be JSON too: `2024`, `true`.
    if let Ok(document @ serde_json::Value::Object(_)) = serde_json::from_str(&text) {
        let field = |name: &str| document[name].as_str().unwrap_or_default();
        return match field("Code") {
            "Success" => format!(
                "credentials {} until {}",
                field("AccessKeyId"),
                field("Expiration")
            ),
            code => format!("{code}: {}", field("Message")),
        };
    }
    let sentence = text
        .split_once("<p>")
        .and_then(|(_, rest)| Some(rest.rsplit_once("</p>")?.0));
    sentence.map_or_else(|| text.to_string(), unescaped)
}

/// Undoes [`escaped`].
fn unescaped(text: &str) -> String {
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&")
}

/// RFC 9110, 5.6.7; written once a second on each thread.
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
    use http_body_util::BodyExt as _;

    async fn body(answer: Answer) -> String {
        String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn the_profile_in_info_leads_to_the_role_and_has_an_id_like_one() {
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
    async fn what_people_wrote_into_annotations_is_no_markup() {
        let page = body(failure(StatusCode::NOT_FOUND, "<script>&</script>")).await;
        assert!(page.contains("&lt;script&gt;&amp;&lt;/script&gt;"), "{page}");
        assert_eq!(in_words(page.as_bytes()), "<script>&</script>");
    }

    #[test]
    fn credentials_in_words_have_nothing_secret() {
        let document = br#"{"Code":"Success","AccessKeyId":"ASIA","SecretAccessKey":"S3","Token":"T0","Expiration":"then"}"#;
        assert_eq!(in_words(document), "credentials ASIA until then");
    }
}
