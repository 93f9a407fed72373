//! Issues session tokens and checks those of requests.

use std::time::{Duration, SystemTime};

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use super::{Handler, ImdsV1Policy};
use crate::credentials::Issuer;
use crate::identify::Client;
use crate::imds::headers::{TOKEN, TOKEN_TTL};
use crate::imds::outcome::{InvalidRequest, Outcome, TokenProblem};
use crate::imds::token::MAX_TTL;

impl<I: Issuer> Handler<I> {
    /// Issues a session token for a client.
    pub(super) fn issue_token(&self, client: &Client, headers: &HeaderMap) -> Outcome {
        let ttl = single(headers, &TOKEN_TTL)
            .and_then(Result::ok)
            .and_then(|ttl| ttl.to_str().ok())
            .filter(|ttl| ttl.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|ttl| ttl.parse::<u64>().ok());
        let Some(ttl) = ttl.filter(|ttl| (1..=MAX_TTL).contains(ttl)) else {
            return Outcome::Invalid(InvalidRequest::TokenTtl);
        };
        match self.parts.tokens.issue(&client.uid, ttl, SystemTime::now()) {
            Ok(token) => Outcome::Token { token, ttl },
            Err(error) => Outcome::TokenUnavailable(error),
        }
    }

    /// Returns what remains of the lifetime of the request's token; `None` if it has none and needs none.
    pub(super) fn check_token(
        &self,
        client: &Client,
        headers: &HeaderMap,
    ) -> Result<Option<Duration>, TokenProblem> {
        if let Some(token) = single(headers, &TOKEN) {
            let check = |token: &HeaderValue| {
                let tokens = &self.parts.tokens;
                tokens.check(&client.uid, token.as_bytes(), SystemTime::now())
            };
            let left = token.ok().and_then(check);
            return left.map(Some).ok_or(TokenProblem::Invalid);
        }
        match *self.parts.imds_v1.borrow() {
            ImdsV1Policy::Allowed => Ok(None),
            ImdsV1Policy::Denied => Err(TokenProblem::Missing),
            ImdsV1Policy::Unknown => Err(TokenProblem::PolicyUnknown),
        }
    }

    /// Waits until it is known that requests need no token.
    pub(super) async fn wait_for_token_policy(&self, deadline: Instant) -> Result<(), TokenProblem> {
        let mut imds_v1 = self.parts.imds_v1.clone();
        let known = imds_v1.wait_for(|known| *known != ImdsV1Policy::Unknown);
        match Box::pin(tokio::time::timeout_at(deadline, known)).await {
            Ok(Ok(known)) if *known == ImdsV1Policy::Allowed => Ok(()),
            Ok(_) => Err(TokenProblem::Missing),
            Err(_) => Err(TokenProblem::PolicyUnknown),
        }
    }
}

/// Returns the value of a header, or an error if there are several different ones. Some clients add the same header
/// again with each retry.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Result<&'a HeaderValue, Several>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    let is_one = values.all(|value| value == first);
    Some(is_one.then_some(first).ok_or(Several))
}

struct Several;

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(&[], None)]
    #[case(&["a"], Some(Some("a")))]
    #[case(&["a", "a", "a"], Some(Some("a")))]
    #[case(&["a", "b"], Some(None))]
    #[case(&["a", "a", ""], Some(None))]
    fn a_header_that_is_given_again_counts_once(#[case] values: &[&str], #[case] want: Option<Option<&str>>) {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TOKEN, value.parse().unwrap());
        }
        let one = single(&headers, &TOKEN);
        let one = one.map(|one| one.ok().map(|value| value.to_str().unwrap()));
        assert_eq!(one, want);
    }
}
