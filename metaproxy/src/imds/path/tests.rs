use super::*;
use proptest::prelude::*;
use rstest::rstest;

fn classify(target: &str) -> Route {
    Paths::default().classify(target)
}

fn role(name: &str, extended: bool) -> Route {
    let name = name.to_owned();
    Route::Role { name, extended }
}

fn node(path: &str) -> Route {
    Route::Node(NodePath(path.to_owned()))
}

#[rstest]
#[case("latest")]
#[case("1.0")]
#[case("2009-04-04")]
#[case("2021-07-15")]
#[case("2099-12-31")]
fn every_version_is_live(#[case] version: &str) {
    let at = |path: &str| classify(&format!("/{version}/{path}"));
    assert_eq!(at("api/token"), Route::Token);
    assert_eq!(at("meta-data/iam"), Route::Iam);
    assert_eq!(at("meta-data/iam/"), Route::Iam);
    assert_eq!(at("meta-data/iam/info"), Route::Info);
    for list in ["security-credentials", "security-credentials-extended"] {
        assert_eq!(at(&format!("meta-data/iam/{list}")), Route::Roles);
        assert_eq!(at(&format!("meta-data/iam/{list}/")), Route::Roles);
        let extended = list.ends_with("extended");
        assert_eq!(at(&format!("meta-data/iam/{list}/app")), role("app", extended));
        assert_eq!(
            at(&format!("meta-data/iam/{list}/app/")),
            Route::Refused(Refusal::Secret)
        );
        assert_eq!(
            at(&format!("meta-data/iam/{list}/a/b")),
            Route::Refused(Refusal::Secret)
        );
    }
    assert_eq!(
        at("meta-data/instance-id"),
        node(&format!("/{version}/meta-data/instance-id"))
    );
    assert_eq!(at("user-data"), Route::Refused(Refusal::Secret));
}

#[rstest]
#[case("/")]
#[case("/latest")]
#[case("/latest/")]
#[case("/latest/dynamic/")]
#[case("/latest/dynamic/instance-identity/")]
#[case("/latest/dynamic/instance-identity/document")]
#[case("/latest/meta-data")]
#[case("/latest/meta-data/")]
#[case("/latest/meta-data/ami-id")]
#[case("/latest/meta-data/autoscaling/")]
#[case("/latest/meta-data/autoscaling/target-lifecycle-state")]
#[case("/latest/meta-data/block-device-mapping/")]
#[case("/latest/meta-data/block-device-mapping/ami")]
#[case("/latest/meta-data/events/maintenance/scheduled")]
#[case("/latest/meta-data/hostname")]
#[case("/latest/meta-data/instance-life-cycle")]
#[case("/latest/meta-data/instance-type")]
#[case("/latest/meta-data/local-hostname")]
#[case("/latest/meta-data/local-ipv4")]
#[case("/latest/meta-data/mac")]
#[case("/latest/meta-data/network/interfaces/")]
#[case("/latest/meta-data/network/interfaces/macs/02:29:96:8f:6a:2d/vpc-id")]
#[case("/latest/meta-data/outpost-arn")]
#[case("/latest/meta-data/placement/")]
#[case("/latest/meta-data/placement/availability-zone")]
#[case("/latest/meta-data/services/partition")]
#[case("/latest/meta-data/spot/instance-action")]
fn what_is_passed_through_is_passed_on_as_it_is(#[case] path: &str) {
    assert_eq!(classify(path), node(path));
}

#[rstest]
#[case("/latest//meta-data///instance-id", "/latest/meta-data/instance-id")]
#[case("//latest/meta-data/instance-id", "/latest/meta-data/instance-id")]
#[case("/latest/./meta-data/instance-id", "/latest/meta-data/instance-id")]
#[case("/latest/x/../meta-data/instance-id", "/latest/meta-data/instance-id")]
#[case("/latest/meta-data/placement/.", "/latest/meta-data/placement/")]
#[case("/latest/meta-data/placement/x/..", "/latest/meta-data/placement/")]
#[case("/latest/meta-data/instance%2Did", "/latest/meta-data/instance-id")]
#[case("/latest/meta-data/instance%252Did", "/latest/meta-data/instance-id")]
#[case("/latest%2Fmeta-data/instance-id", "/latest/meta-data/instance-id")]
#[case(
    "/latest/meta-data/network/interfaces/macs/02%3A29/vpc-id",
    "/latest/meta-data/network/interfaces/macs/02:29/vpc-id"
)]
#[case("/latest/meta-data/instance-id?x=1", "/latest/meta-data/instance-id")]
fn another_spelling_of_it_is_passed_on_in_its_plain_form(#[case] path: &str, #[case] passed: &str) {
    assert_eq!(classify(path), node(passed));
}

#[rstest]
#[case("/latest/meta-data/public-keys/", Refusal::Secret)]
#[case("/latest/meta-data/managed-ssh-keys/signer-cert", Refusal::Secret)]
#[case(
    "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
    Refusal::Secret
)]
#[case("/latest/dynamic/instance-identity/pkcs7", Refusal::Secret)]
#[case("/latest/dynamic/instance-identity/rsa2048", Refusal::Secret)]
#[case("/latest/dynamic/instance-identity/signature", Refusal::Secret)]
#[case("/latest/user-data", Refusal::Secret)]
#[case("/latest/user-data/", Refusal::Secret)]
#[case("/latest/User-Data", Refusal::Secret)]
#[case("/latest/user-data.", Refusal::Secret)]
#[case("/latest/meta-data/IAM/security-credentials/", Refusal::Secret)]
#[case("/latest/meta-data/iam/Security-Credentials/", Refusal::Secret)]
#[case("/latest/meta-data/iam/security-credentialsx", Refusal::Secret)]
#[case("/latest/meta-data/placement/iam/x", Refusal::Secret)]
#[case("/latest/meta-data/tags/instance/Name", Refusal::NotAllowed)]
#[case("/latest/meta-data/public-ipv4", Refusal::NotAllowed)]
#[case("/latest/meta-data/placementx", Refusal::NotAllowed)]
#[case("/latest/meta-data/instance-id/x", Refusal::NotAllowed)]
#[case("/LATEST/meta-data/instance-id", Refusal::NotAllowed)]
#[case("/latest/Meta-Data/instance-id", Refusal::NotAllowed)]
#[case("/1.1/meta-data/instance-id", Refusal::NotAllowed)]
#[case("/20x1-07-15/meta-data/instance-id", Refusal::NotAllowed)]
#[case("/meta-data/instance-id", Refusal::NotAllowed)]
#[case("/latest/api/token/", Refusal::NotAllowed)]
#[case("/latest/meta-data//iam/security-credentials/", Refusal::NotPlain)]
#[case("/latest/meta-data/iam/security-credentials/app?x", Refusal::NotPlain)]
#[case("/latest/meta-data/placement/../iam/info", Refusal::NotPlain)]
#[case("/latest/meta-data/%69am/info", Refusal::NotPlain)]
#[case("/latest/meta-data/%2569am/info", Refusal::NotPlain)]
#[case("/latest/meta-data/iam/../instance-id", Refusal::NotPlain)]
#[case("/latest/meta-data/placement/%2e%2e/user-data", Refusal::NotPlain)]
#[case("/latest/dynamic/instance-identity/%70kcs7", Refusal::NotPlain)]
#[case("/latest/meta-data/instance-id?../iam", Refusal::NotPlain)]
#[case("/latest/meta-data\\iam\\info", Refusal::NotPlain)]
#[case("/latest/meta-data/instance-id%00", Refusal::NotPlain)]
#[case("/latest/meta-data/instance-id%0d%0ax", Refusal::NotPlain)]
#[case("/latest/meta-data/instance-id%20", Refusal::NotPlain)]
#[case("/latest/meta-data/instance-id;x", Refusal::NotPlain)]
#[case("/latest/meta-data/instance-id%", Refusal::NotPlain)]
#[case("/latest/meta-data/instance-id%zz", Refusal::NotPlain)]
#[case("/latest/meta-data/instance-id%+1", Refusal::NotPlain)]
#[case("/latest/meta-data/%c0%afiam", Refusal::NotPlain)]
#[case("/..", Refusal::NotPlain)]
#[case("/latest/../../x", Refusal::NotPlain)]
#[case("latest/meta-data/instance-id", Refusal::NotPlain)]
#[case("http://169.254.169.254/latest/meta-data/instance-id", Refusal::NotPlain)]
#[case("*", Refusal::NotPlain)]
#[case("", Refusal::NotPlain)]
fn everything_else_is_refused(#[case] path: &str, #[case] why: Refusal) {
    assert_eq!(classify(path), Route::Refused(why));
    let all = Paths::allowing(&[".*".to_owned()]).unwrap();
    match why {
        Refusal::NotAllowed => {}
        secret => assert_eq!(
            all.classify(path),
            Route::Refused(secret),
            "whatever --allow-path says"
        ),
    }
}

#[test]
fn what_is_encoded_too_often_or_too_long_is_refused() {
    let mut path = "/latest/meta-data/instance-%69d".to_owned();
    for _ in 0..MAX_ENCODINGS {
        path = path.replace('%', "%25");
    }
    assert_eq!(classify(&path), Route::Refused(Refusal::NotPlain));
    let long = format!("/latest/meta-data/placement/{}", "x".repeat(MAX_LENGTH));
    assert_eq!(classify(&long), Route::Refused(Refusal::NotPlain));
}

#[rstest]
#[case("tags/instance/.*", "/latest/meta-data/tags/instance/Name", true)]
#[case(
    "meta-data/tags/instance/Name",
    "/2021-07-15/meta-data/tags/instance/Name",
    true
)]
#[case("/latest/meta-data/public-ipv4", "/latest/meta-data/public-ipv4", true)]
#[case("/latest/meta-data/public-ipv4", "/1.0/meta-data/public-ipv4", false)]
#[case("public", "/latest/meta-data/public-ipv4", false)]
#[case("public-ipv4|public-hostname", "/latest/meta-data/public-hostname", true)]
#[case("public-ipv4|public-hostname", "/latest/meta-data/public-hostname-x", false)]
#[case("dynamic/fws/.*", "/latest/dynamic/fws/instance-monitoring", true)]
fn more_may_be_allowed_by_anchored_patterns(
    #[case] pattern: &str,
    #[case] path: &str,
    #[case] allowed: bool,
) {
    let paths = Paths::allowing(&[pattern.to_owned()]).unwrap();
    let want = if allowed {
        node(path)
    } else {
        Route::Refused(Refusal::NotAllowed)
    };
    assert_eq!(paths.classify(path), want);
}

#[test]
fn a_pattern_that_is_none_is_an_error() {
    for pattern in ["(", "a)|(b", "\\pL{2000}{2000}"] {
        assert!(Paths::allowing(&[pattern.to_owned()]).is_err(), "{pattern}");
    }
}

/// Bytes that attackers put into paths, and whole spellings of them.
fn nasty() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "/",
        "//",
        "/./",
        "/../",
        "..",
        ".",
        "%2e",
        "%2f",
        "%5c",
        "\\",
        ";",
        "?",
        "%3f",
        "%23",
        "#",
        "%00",
        "%",
        "%25",
        "latest",
        "1.0",
        "2021-07-15",
        "LATEST",
        "meta-data",
        "iam",
        "IAM",
        "%69am",
        "i%61m",
        "security-credentials",
        "security-credentials-extended",
        "identity-credentials",
        "user-data",
        "info",
        "node",
        "placement",
        "instance-id",
        "dynamic",
        "instance-identity",
        "pkcs7",
        "document",
        "public-keys",
        "network",
        "interfaces",
        "macs",
        "spot",
        "api",
        "token",
        " ",
        "%20",
        "\u{ff0f}",
        "%c0%af",
        "x",
    ]);
    prop::collection::vec(words, 0..14).prop_map(|words| words.concat())
}

/// What must hold of whatever is classified.
fn check(paths: &Paths, target: &str) -> Result<(), TestCaseError> {
    match paths.classify(target) {
        Route::Node(passed) => {
            let passed = passed.as_str();
            // What is passed on is what was matched: it is plain, means itself, and is nothing secret.
            prop_assert_eq!(paths.classify(passed), node(passed));
            prop_assert!(passed.bytes().all(|byte| byte.is_ascii_graphic()), "{}", passed);
            prop_assert!(
                !passed.contains("//") && !passed.contains(['%', '\\', ';', '?', '#']),
                "{}",
                passed
            );
            for segment in passed.split('/') {
                let segment = segment.to_lowercase();
                prop_assert!(segment != "." && segment != "..", "{}", passed);
                prop_assert!(
                    !NEVER.contains(&segment.as_str()) && !segment.contains("credential"),
                    "{}",
                    passed
                );
            }
        }
        // Credentials and tokens are asked for in plain form, or for tokens in one that has it.
        Route::Role { name, .. } => {
            let is_plain = target.ends_with(&format!("/{}", name)) && !target.contains('%');
            prop_assert!(is_plain, "{}", target);
        }
        Route::Roles | Route::Iam | Route::Info => {
            prop_assert!(!target.contains(['%', '?', '\\']), "{}", target);
        }
        Route::Token | Route::Refused(_) => {}
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn the_short_way_says_what_the_full_look_says(
        name in prop_oneof!["[a-zA-Z0-9+=,.@_%/?~-]{0,70}", ".{0,20}"]
    ) {
        let target = format!("/latest/meta-data/iam/security-credentials/{name}");
        if let Some(route) = usual(&target) {
            prop_assert_eq!(route, Paths::default().classify_any(&target));
        }
    }

    #[test]
    fn whatever_is_asked_for_only_what_was_matched_is_passed_on(target in nasty()) {
        check(&Paths::default(), &target)?;
        check(&Paths::allowing(&[".*".to_owned()]).unwrap(), &target)?;
    }

    #[test]
    fn and_so_for_any_text(target in "/?\\PC{0,60}") {
        check(&Paths::allowing(&[".*".to_owned()]).unwrap(), &target)?;
    }

    /// As the HTTP library takes them from a connection.
    #[test]
    fn and_so_for_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..60), nasty in nasty()) {
        for target in [&b"/"[..], nasty.as_bytes()].map(|start| [start, &bytes].concat()) {
            let Ok(uri) = hyper::Uri::try_from(target) else { continue };
            if let Some(path) = uri.path_and_query() {
                check(&Paths::allowing(&[".*".to_owned()]).unwrap(), path.as_str())?;
            }
        }
    }

    #[test]
    fn no_depth_of_encoding_hides_a_secret(depth in 0..8usize, mask in any::<u32>(), secret in prop::sample::select(vec![
        "/latest/meta-data/iam/security-credentials/node", "/latest/user-data", "/latest/meta-data/identity-credentials/ec2/info",
        "/latest/dynamic/instance-identity/pkcs7", "/latest/meta-data/public-keys/0/openssh-key",
    ])) {
        let encode = |text: &str, mask: u32| -> String {
            text.bytes()
                .enumerate()
                .map(|(index, byte)| {
                    let encoded = byte == b'%' || mask >> (index % 32) & 1 == 1;
                    if encoded { format!("%{byte:02x}") } else { char::from(byte).to_string() }
                })
                .collect()
        };
        let mut target = secret[1..].to_owned();
        for _ in 0..depth {
            target = encode(&target, mask);
        }
        let route = Paths::allowing(&[".*".to_owned()]).unwrap().classify(&format!("/{target}"));
        let is_kept = matches!(route, Route::Refused(_) | Route::Role { .. });
        prop_assert!(is_kept, "{:?} for {}", route, target);
    }
}
