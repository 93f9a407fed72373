//! Headers of the metadata protocol that have no name in HTTP itself.
//!
//! Source: the EC2 user guide, "Use the Instance Metadata Service to access instance metadata".

use hyper::header::{HeaderName, HeaderValue};

/// Carries the session token of a request.
pub const TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");

/// Carries the lifetime of a token in seconds: the wanted one in a request for a token, the remaining one in each
/// response to a request with a token.
pub const TOKEN_TTL: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");

/// Marks a request that came through a proxy. The metadata service refuses to issue tokens for those.
pub const FORWARDED: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Identifies the metadata service in its `Server` header.
pub const SERVER_NAME: HeaderValue = HeaderValue::from_static("EC2ws");
