//! Makes the HTTP client of the AWS SDK. It supports what corporate and isolated networks need and the SDK for Rust
//! leaves out: `HTTPS_PROXY`, `NO_PROXY` and `AWS_CA_BUNDLE`, as the AWS CLI reads them.
//!
//! Plain HTTP never goes through a proxy. It is used only for the node's metadata service, and for endpoints of
//! tests.

use std::io;
use std::path::PathBuf;

use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use thiserror::Error;

/// Why the environment's network settings cannot be used.
#[derive(Debug, Error)]
pub enum NetworkEnvError {
    /// The CA bundle cannot be read.
    #[error("AWS_CA_BUNDLE={path}: {source}")]
    CaBundle {
        /// The bundle's path.
        path: PathBuf,
        /// The error of reading it.
        source: io::Error,
    },
    /// The CA bundle holds no certificate, or one that cannot be parsed.
    #[error("AWS_CA_BUNDLE={path}: no PEM certificate in it, or a broken one")]
    NoCertificate {
        /// The bundle's path.
        path: PathBuf,
    },
    /// The proxy's URL cannot be parsed.
    #[error("HTTPS_PROXY: not the URL of a proxy (http://[user:password@]host:port): {0}")]
    Proxy(String),
    /// The TLS library refuses the settings.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
}

/// The environment's network settings. `Debug` is not derived: a proxy's URL may hold a password.
#[derive(Clone, Default)]
pub struct NetworkEnv {
    /// `HTTPS_PROXY` or `https_proxy`
    pub https_proxy: Option<String>,
    /// `NO_PROXY` or `no_proxy`
    pub no_proxy: Option<String>,
    /// `AWS_CA_BUNDLE`
    pub ca_bundle: Option<PathBuf>,
}

impl NetworkEnv {
    /// Reads this process's environment.
    #[expect(
        clippy::disallowed_methods,
        reason = "conventions of the environment, which are no flags of ours"
    )]
    pub fn read() -> Self {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// Takes the uppercase name before the lowercase one, as the SDK for Rust does (curl and the AWS CLI take the
    /// lowercase one first). An empty variable counts as one that is not set, so it hides no other.
    fn from_variables(get: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: &[&str]| {
            let mut values = names.iter().filter_map(|name| get(name));
            values.find(|value| !value.is_empty())
        };
        Self {
            https_proxy: first(&["HTTPS_PROXY", "https_proxy"]),
            no_proxy: first(&["NO_PROXY", "no_proxy"]),
            ca_bundle: first(&["AWS_CA_BUNDLE"]).map(PathBuf::from),
        }
    }

    fn proxy(&self) -> Result<ProxyConfig, NetworkEnvError> {
        let Some(url) = &self.https_proxy else {
            return Ok(ProxyConfig::disabled());
        };
        let proxy = ProxyConfig::https(url).map_err(|error| NetworkEnvError::Proxy(error.to_string()))?;
        Ok(match &self.no_proxy {
            Some(rules) => proxy.no_proxy(rules),
            None => proxy,
        })
    }

    fn tls(&self) -> Result<TlsContext, NetworkEnvError> {
        let store = match &self.ca_bundle {
            None => TrustStore::default(),
            Some(path) => {
                let pem = std::fs::read(path).map_err(|source| NetworkEnvError::CaBundle {
                    path: path.clone(),
                    source,
                })?;
                let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
                if certificates
                    .ok()
                    .is_none_or(|certificates| certificates.is_empty())
                {
                    return Err(NetworkEnvError::NoCertificate { path: path.clone() });
                }
                TrustStore::empty().with_pem_certificate(pem)
            }
        };
        TlsContext::builder()
            .with_trust_store(store)
            .build()
            .map_err(|error| NetworkEnvError::Tls(error.to_string()))
    }

    /// Makes an HTTP client for the SDK that follows these settings.
    ///
    /// # Errors
    /// Returns an error if the settings cannot be used.
    pub fn http_client(&self) -> Result<SharedHttpClient, NetworkEnvError> {
        let (proxy, tls) = (self.proxy()?, self.tls()?);
        Ok(
            Builder::new().build_with_connector_fn(move |settings, components| {
                let mut connector = Connector::builder()
                    .tls_provider(Provider::Rustls(CryptoMode::Ring))
                    .tls_context(tls.clone())
                    .proxy_config(proxy.clone());
                connector.set_connector_settings(settings.cloned());
                connector.set_sleep_impl(components.and_then(|components| components.sleep_impl()));
                connector.build()
            }),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::neither(None, None, None)]
    #[case::lowercase(None, Some("l"), Some("l"))]
    #[case::both(Some("u"), Some("l"), Some("u"))]
    #[case::uppercase_is_empty(Some(""), Some("l"), Some("l"))]
    #[case::both_are_empty(Some(""), Some(""), None)]
    fn the_first_variable_with_a_value_counts(
        #[case] uppercase: Option<&str>,
        #[case] lowercase: Option<&str>,
        #[case] want: Option<&str>,
    ) {
        let env = NetworkEnv::from_variables(|name| {
            let is_upper = name == name.to_uppercase();
            let value = if is_upper { uppercase } else { lowercase };
            value.map(str::to_owned)
        });
        assert_eq!(
            (env.https_proxy.as_deref(), env.no_proxy.as_deref()),
            (want, want)
        );
    }

    #[test]
    fn a_bundle_that_is_missing_or_empty_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let missing = NetworkEnv {
            ca_bundle: Some(dir.path().join("none.pem")),
            ..NetworkEnv::default()
        };
        let error = missing.http_client().err().unwrap().to_string();
        assert!(error.contains("none.pem: No such file"), "{error}");
        let path = dir.path().join("empty.pem");
        std::fs::write(&path, "no certificate").unwrap();
        let empty = NetworkEnv {
            ca_bundle: Some(path),
            ..NetworkEnv::default()
        };
        assert!(
            empty
                .http_client()
                .err()
                .unwrap()
                .to_string()
                .contains("no PEM certificate")
        );
    }

    #[test]
    fn a_proxy_that_is_no_url_is_an_error_that_names_the_variable() {
        let env = NetworkEnv {
            https_proxy: Some("http://[".to_owned()),
            ..NetworkEnv::default()
        };
        assert!(
            env.http_client()
                .err()
                .unwrap()
                .to_string()
                .starts_with("HTTPS_PROXY: ")
        );
        let env = NetworkEnv {
            https_proxy: Some("http://proxy:3128".to_owned()),
            ..NetworkEnv::default()
        };
        assert!(env.http_client().is_ok());
    }
}
