use std::sync::LazyLock;

use super::normal::{MAX_ENCODINGS, MAX_LENGTH};
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
    let (path, is_listing) = (path.to_owned(), false);
    Route::Node(NodePath { path, is_listing })
}

fn listing(path: &str) -> Route {
    let (path, is_listing) = (path.to_owned(), true);
    Route::Node(NodePath { path, is_listing })
}

fn paths(pass_through: PassThrough, patterns: &[&str]) -> Paths {
    let patterns: Vec<String> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
    Paths::new(pass_through, &patterns).unwrap()
}

#[rstest]
#[case("latest")]
#[case("1.0")]
#[case("2009-04-04")]
#[case("2021-07-15")]
#[case("2099-12-31")]
fn every_version_serves_the_same_paths(#[case] version: &str) {
    let at = |path: &str| classify(&format!("/{version}/{path}"));
    assert_eq!(at("api/token"), Route::Token);
    assert_eq!(at("meta-data/iam"), Route::Iam);
    assert_eq!(at("meta-data/iam/"), Route::Iam);
    assert_eq!(at("meta-data/iam/info"), Route::Info);
    assert_eq!(at("meta-data/iam/info/"), Route::Info);
    assert_eq!(at("api/token/"), Route::Token);
    for list in ["security-credentials", "security-credentials-extended"] {
        assert_eq!(at(&format!("meta-data/iam/{list}")), Route::Roles);
        assert_eq!(at(&format!("meta-data/iam/{list}/")), Route::Roles);
        let extended = list.ends_with("extended");
        assert_eq!(at(&format!("meta-data/iam/{list}/app")), role("app", extended));
        assert_eq!(at(&format!("meta-data/iam/{list}/app/")), role("app", extended));
        assert_eq!(at(&format!("meta-data/iam/{list}/a/b")), role("a/b", extended));
    }
    assert_eq!(
        at("meta-data/instance-id"),
        node(&format!("/{version}/meta-data/instance-id"))
    );
    assert_eq!(at("user-data"), Route::Refused(Refusal::Secret));
}

#[rstest]
#[case("/latest/dynamic/instance-identity/document")]
#[case("/latest/meta-data/ami-id")]
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
#[case("/latest/meta-data/network/interfaces/macs/02:29:96:8f:6a:2d/vpc-id")]
#[case("/latest/meta-data/outpost-arn")]
#[case("/latest/meta-data/placement/")]
#[case("/latest/meta-data/placement/availability-zone")]
#[case("/latest/meta-data/services/partition")]
#[case("/latest/meta-data/spot/instance-action")]
#[case("/latest/meta-data/public-ipv4")]
#[case("/latest/meta-data/public-hostname")]
#[case("/latest/meta-data/public-ipv6")]
#[case("/latest/meta-data/ipv6")]
#[case("/latest/meta-data/security-groups")]
#[case("/latest/meta-data/reservation-id")]
#[case("/latest/meta-data/ami-launch-index")]
#[case("/latest/meta-data/ami-manifest-path")]
#[case("/latest/meta-data/ancestor-ami-ids")]
#[case("/latest/meta-data/kernel-id")]
#[case("/latest/meta-data/ramdisk-id")]
#[case("/latest/meta-data/product-codes")]
#[case("/latest/meta-data/profile")]
#[case("/latest/meta-data/instance-action")]
#[case("/latest/meta-data/system")]
#[case("/latest/meta-data/elastic-gpus/associations/elg-0")]
#[case("/latest/meta-data/elastic-inference/associations/eia-0")]
#[case("/latest/meta-data/public-ipv4/")]
#[case("/latest/meta-data/tags/instance")]
#[case("/latest/meta-data/tags/instance/")]
#[case("/latest/meta-data/tags/instance/Name")]
fn default_paths_are_passed_on_unchanged(#[case] path: &str) {
    assert_eq!(classify(path), node(path));
}

/// The paths, relative to the version, that the source code of each program requests.
#[rstest]
#[case::ebs_csi(
    "dynamic/instance-identity/document meta-data/instance-id meta-data/instance-type meta-data/outpost-arn"
)]
#[case::ebs_csi_volumes(
    "meta-data/block-device-mapping meta-data/block-device-mapping/ebs1 meta-data/network/interfaces/macs"
)]
#[case::efs_csi(
    "dynamic/instance-identity/document meta-data/placement/availability-zone-id meta-data/services/domain"
)]
#[case::load_balancer_controller(
    "meta-data/placement/region meta-data/mac meta-data/network/interfaces/macs/02:29:96:8f:6a:2d/vpc-id"
)]
#[case::cloud_provider(
    "meta-data/placement/availability-zone meta-data/local-ipv4 meta-data/local-hostname meta-data/hostname"
)]
#[case::cloud_provider_addresses(
    "meta-data/network/interfaces/macs/02:29:96:8f:6a:2d/local-ipv4s meta-data/public-ipv4"
)]
#[case::node_termination_handler(
    "meta-data/spot/instance-action meta-data/events/maintenance/scheduled meta-data/events/recommendations/rebalance \
     meta-data/autoscaling/target-lifecycle-state meta-data/instance-life-cycle"
)]
#[case::spot_termination_handler("meta-data/spot/termination-time")]
#[case::cluster_autoscaler("dynamic/instance-identity/document")]
#[case::external_dns_and_cert_manager("meta-data/placement/region dynamic/instance-identity/document")]
#[case::kops_controller("meta-data/instance-id meta-data/placement/region meta-data/local-ipv4")]
#[case::opentelemetry("dynamic/instance-identity/document meta-data/hostname meta-data/tags/instance")]
#[case::beats_telegraf_new_relic("dynamic/instance-identity/document meta-data/tags/instance/Name")]
#[case::istio(
    "dynamic/instance-identity/document meta-data/placement/availability-zone meta-data/placement/partition-number"
)]
#[case::envoy("meta-data/placement/availability-zone meta-data/placement/region")]
#[case::cloudwatch_agent(
    "meta-data/instance-id meta-data/instance-type meta-data/ami-id meta-data/tags/instance"
)]
fn the_default_list_has_all_paths_that_common_node_software_needs(#[case] paths: &str) {
    for path in paths.split_whitespace() {
        let path = format!("/latest/{path}");
        assert_eq!(classify(&path), node(&path));
        assert_eq!(classify(&format!("{path}/")), node(&format!("{path}/")));
    }
}

#[rstest]
#[case("/")]
#[case("/latest")]
#[case("/latest/")]
#[case("/latest/dynamic/")]
#[case("/latest/dynamic/instance-identity/")]
#[case("/latest/meta-data")]
#[case("/latest/meta-data/")]
#[case("/latest/meta-data/autoscaling/")]
#[case("/latest/meta-data/network/interfaces/")]
#[case("/latest/meta-data/tags")]
fn lists_that_lead_to_default_paths_are_filtered(#[case] path: &str) {
    assert_eq!(classify(path), listing(path));
}

/// The owner of the instance chooses the keys of its tags, so any key is only data.
#[rstest]
#[case("iam", "iam")]
#[case("IAM/", "IAM/")]
#[case("iam/security-credentials/node", "iam/security-credentials/node")]
#[case("credential-store", "credential-store")]
#[case("user-data", "user-data")]
#[case("Cost%20Center", "Cost%20Center")]
#[case("Cost%2520Center", "Cost%20Center")]
#[case("#1%3f", "%231%3F")]
#[case("100%25", "100%25")]
#[case("100%", "100%25")]
#[case("kubernetes.io%2Fcluster%2Flab", "kubernetes.io/cluster/lab")]
#[case("aws:autoscaling:groupName", "aws:autoscaling:groupName")]
#[case("Gr%C3%B6%c3%9fe", "Gr%C3%B6%C3%9Fe")]
#[case("a..b", "a..b")]
#[case("x;y", "x%3By")]
fn a_tag_may_have_any_key_and_is_passed_on_in_one_spelling(#[case] key: &str, #[case] passed: &str) {
    for tags in [
        "/latest/meta-data/tags/instance/",
        "/2021-07-15//meta-data/t%61gs/instance/",
    ] {
        let version = tags.split('/').nth(1).unwrap();
        let want = format!("/{version}/meta-data/tags/instance/{passed}");
        assert_eq!(classify(&format!("{tags}{key}")), node(&want));
        assert_eq!(classify(&want), node(&want), "and that is its own");
    }
}

/// Some servers may read these keys as paths that leave the tags.
#[rstest]
#[case("..;/..;/iam/info", Refusal::NotPlain)]
#[case("..%5c..%5ciam", Refusal::NotPlain)]
#[case("x%5c..%5ciam", Refusal::NotPlain)]
#[case("..%20/iam", Refusal::NotPlain)]
#[case("..\u{ff0f}..\u{ff0f}iam", Refusal::NotPlain)]
#[case("..%00/iam", Refusal::NotPlain)]
#[case("x%0d%0aGET%20/", Refusal::NotPlain)]
#[case("x%09", Refusal::NotPlain)]
#[case("%ff", Refusal::NotPlain)]
#[case("%c0%ae%c0%ae/iam", Refusal::NotPlain)]
#[case("a%20b/../../iam", Refusal::NotPlain)]
#[case("a%20b/./c", Refusal::NotPlain)]
#[case("../../user-data", Refusal::NotPlain)]
#[case("%2e%2e/%2e%2e/identity-credentials/ec2/info", Refusal::NotPlain)]
#[case("../../../user-data", Refusal::NotPlain)]
fn no_key_of_a_tag_leads_out_of_the_tags(#[case] key: &str, #[case] why: Refusal) {
    for paths in [&Paths::default(), &*ALL] {
        let route = paths.classify(&format!("/latest/meta-data/tags/instance/{key}"));
        assert_eq!(route, Route::Refused(why));
    }
}

/// The agent itself answers these paths and passes none of them on, so their spelling does not matter.
#[rstest]
#[case("/latest/meta-data/iam/security-credentials//app", role("app", false))]
#[case("//latest//meta-data/iam/security-credentials/app", role("app", false))]
#[case("/latest/meta-data/./iam/x/../security-credentials/app", role("app", false))]
#[case(
    "/latest/meta-data/iam/security%2Dcredentials/my%2Dapp",
    role("my-app", false)
)]
#[case(
    "/latest/meta-data/iam/security-credentials/a%2Bb%3Dc%2Cd%40e",
    role("a+b=c,d@e", false)
)]
#[case(
    "/latest/meta-data/iam/security-credentials/a+b=c,d@e",
    role("a+b=c,d@e", false)
)]
#[case("/latest/meta-data/iam/security-credentials/app?x=y", role("app", false))]
#[case(
    "/latest/meta-data/iam/security-credentials-extended/a%2fb/",
    role("a/b", true)
)]
#[case("/latest/meta-data/iam/security-credentials/iam/app", role("iam/app", false))]
#[case(
    "/latest/meta-data/iam/security-credentials/arn:aws:iam::123456789012:role/app",
    role("arn:aws:iam::123456789012:role/app", false)
)]
#[case("/latest/meta-data//iam/security-credentials/", Route::Roles)]
#[case("/latest/meta-data/iam/security-credentials//", Route::Roles)]
#[case("/latest/meta-data/%69am/info", Route::Info)]
#[case("/latest/meta-data/%2569am/info", Route::Info)]
#[case("/latest/meta-data/placement/../iam/info", Route::Info)]
#[case("/latest/meta-data//iam", Route::Iam)]
#[case("/latest//api/token", Route::Token)]
#[case("/latest/api/tok%65n/", Route::Token)]
fn own_paths_are_answered_in_any_spelling(#[case] path: &str, #[case] want: Route) {
    assert_eq!(classify(path), want);
    assert_eq!(
        paths(PassThrough::None, &[]).classify(path),
        want,
        "whatever is passed through"
    );
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
fn another_spelling_of_a_path_is_passed_on_in_normal_form(#[case] path: &str, #[case] passed: &str) {
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
#[case("/latest/meta-data/placementx", Refusal::NotAllowed)]
#[case("/latest/meta-data/tags/instances", Refusal::NotAllowed)]
#[case("/latest/meta-data/tags/iam", Refusal::Secret)]
#[case("/latest/tags/instance/iam", Refusal::Secret)]
#[case("/latest/meta-data/tags%20/instance/x", Refusal::NotPlain)]
#[case("/latest/meta-data/%69am/x", Refusal::NotPlain)]
#[case("/latest/meta-data//iam/x", Refusal::NotPlain)]
#[case("/iam/security-credentials/app", Refusal::NotAllowed)]
#[case("/latest/meta-data/instance-id/x", Refusal::NotAllowed)]
#[case("/LATEST/meta-data/instance-id", Refusal::NotAllowed)]
#[case("/latest/Meta-Data/instance-id", Refusal::NotAllowed)]
#[case("/1.1/meta-data/instance-id", Refusal::NotAllowed)]
#[case("/20x1-07-15/meta-data/instance-id", Refusal::NotAllowed)]
#[case("/meta-data/instance-id", Refusal::NotAllowed)]
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
    match why {
        Refusal::NotAllowed => {}
        secret => assert_eq!(
            ALL.classify(path),
            Route::Refused(secret),
            "whatever --allow-path says"
        ),
    }
}

#[test]
fn a_path_that_is_encoded_too_often_or_too_long_is_refused() {
    let mut path = "/latest/meta-data/instance-%69d".to_owned();
    for _ in 0..MAX_ENCODINGS {
        path = path.replace('%', "%25");
    }
    assert_eq!(classify(&path), Route::Refused(Refusal::NotPlain));
    let long = format!("/latest/meta-data/placement/{}", "x".repeat(MAX_LENGTH));
    assert_eq!(classify(&long), Route::Refused(Refusal::NotPlain));
}

/// The examples in the documentation are among these cases.
#[rstest]
#[case("tags/instance/.*", "/latest/meta-data/tags/instance/Name", true)]
#[case("tags/instance/.*", "/latest/meta-data/tags/instance/Cost%20Center", true)]
#[case("tags/instance/.*", "/latest/meta-data/tags/instance", true)]
#[case("tags/instance/.*", "/latest/meta-data/tags/instance/", true)]
#[case("meta-data/tags/instance/.*", "/1.0/meta-data/tags/instance/Name", true)]
#[case(
    "/latest/meta-data/tags/instance/.*",
    "/latest/meta-data/tags/instance/Name",
    true
)]
#[case(
    "/latest/meta-data/tags/instance/.*",
    "/1.0/meta-data/tags/instance/Name",
    false
)]
#[case(
    "tags/instance/Cost.Center",
    "/latest/meta-data/tags/instance/Cost%20Center",
    true
)]
#[case("tags/instance/", "/latest/meta-data/tags/instance", true)]
#[case("tags/instance", "/latest/meta-data/tags/instance/", true)]
#[case("tags/instance", "/latest/meta-data/tags/instance/Name", false)]
#[case("/latest/meta-data/public-ipv4", "/latest/meta-data/public-ipv4", true)]
#[case("/latest/meta-data/public-ipv4", "/latest/meta-data/public-ipv4/", true)]
#[case("/latest/meta-data/public-ipv4", "/1.0/meta-data/public-ipv4", false)]
#[case("public", "/latest/meta-data/public-ipv4", false)]
#[case("public-ipv4|public-hostname", "/latest/meta-data/public-hostname", true)]
#[case("public-ipv4|public-hostname", "/latest/meta-data/public-hostname-x", false)]
#[case("dynamic/fws/.*", "/latest/dynamic/fws/instance-monitoring", true)]
#[case("dynamic/fws/.*", "/latest/dynamic/fws", true)]
fn patterns_are_anchored_and_allow_more_paths(
    #[case] pattern: &str,
    #[case] path: &str,
    #[case] allowed: bool,
) {
    let want = if allowed {
        node(path)
    } else {
        Route::Refused(Refusal::NotAllowed)
    };
    assert_eq!(paths(PassThrough::None, &[pattern]).classify(path), want);
}

/// The documentation gives several patterns for the same tags. Each of them must allow the list and its entries.
#[test]
fn the_patterns_in_the_documentation_allow_what_it_says() {
    let document = include_str!("../../../../deploy/docs/imds.md");
    let (_, told) = document.split_once("`--allow-path` adds to that: ").unwrap();
    let (told, _) = told.split_once("A slash at the end").unwrap();
    let patterns: Vec<&str> = told.split('`').skip(1).step_by(2).collect();
    assert_eq!(patterns.len(), 3, "{told}");
    for pattern in patterns {
        let paths = paths(PassThrough::None, &[pattern]);
        for path in [
            "tags/instance",
            "tags/instance/",
            "tags/instance/Name",
            "tags/instance/Name/",
        ] {
            let path = format!("/latest/meta-data/{path}");
            assert_eq!(paths.classify(&path), node(&path), "{pattern}");
        }
    }
}

#[rstest]
#[case("tags/instance/Name", &["/", "/latest", "/latest/meta-data/", "/latest/meta-data/tags", "/latest/meta-data/tags/instance/"])]
#[case("tags/instance/[A-Z].+", &["/latest/meta-data/tags/", "/latest/meta-data/tags/instance"])]
#[case("dynamic/fws/instance-monitoring", &["/latest/dynamic", "/latest/dynamic/fws/"])]
#[case(".*", &["/latest/meta-data/", "/latest/dynamic/instance-identity"])]
fn lists_that_lead_to_an_allowed_path_are_filtered(#[case] pattern: &str, #[case] lists: &[&str]) {
    for list in lists {
        assert_eq!(paths(PassThrough::None, &[pattern]).classify(list), listing(list));
    }
}

#[rstest]
#[case(PassThrough::Minimal, "/latest/meta-data/placement/region", true)]
#[case(PassThrough::Minimal, "/latest/meta-data/placement/availability-zone", true)]
#[case(PassThrough::Minimal, "/latest/dynamic/instance-identity/document", true)]
#[case(PassThrough::Minimal, "/latest/meta-data/placement/group-name", false)]
#[case(PassThrough::Minimal, "/latest/meta-data/instance-id", false)]
#[case(PassThrough::Minimal, "/latest/meta-data/tags/instance/Name", false)]
#[case(PassThrough::Minimal, "/latest/meta-data/tags", false)]
#[case(PassThrough::None, "/latest/meta-data/placement/region", false)]
#[case(PassThrough::None, "/latest/meta-data/", false)]
#[case(PassThrough::None, "/", false)]
fn fewer_paths_may_be_allowed(#[case] pass_through: PassThrough, #[case] path: &str, #[case] passed: bool) {
    let want = if passed {
        node(path)
    } else {
        Route::Refused(Refusal::NotAllowed)
    };
    assert_eq!(paths(pass_through, &[]).classify(path), want);
}

#[test]
fn an_invalid_pattern_is_an_error() {
    for pattern in ["(", "a)|(b", "a{2000}{2000}", "(a|b)*a(a|b){20}"] {
        let error = Paths::new(PassThrough::Default, &[pattern.to_owned()]).unwrap_err();
        assert!(matches!(error, BadPattern::Regex(_)), "{pattern}: {error}");
    }
}

#[rstest]
#[case::no_version("/meta-data/public-ipv4", false)]
#[case::no_first_slash("latest/meta-data/public-ipv4", false)]
#[case::other_version("/v1/meta-data/public-ipv4", false)]
#[case::url("http://169.254.169.254/latest/meta-data/public-ipv4", false)]
#[case::blank("public ipv4", false)]
#[case::encoded("dynamic/fws%2fx", false)]
#[case::empty_part("dynamic//fws", false)]
#[case::dots("dynamic/\\.\\./fws", false)]
#[case::nothing("a$b", false)]
#[case::empty("", false)]
#[case::token("api/token", false)]
#[case::query("placement/region\\?x", false)]
#[case::roles("iam/.*", true)]
#[case::whole("/latest/meta-data/iam/.*", true)]
#[case::user_data("user-data", true)]
#[case::user_data_of_any_version("/[^/]+/user-data.*", true)]
#[case::keys("public-keys/0/openssh-key|managed-ssh-keys/.*", true)]
#[case::signatures("dynamic/instance-identity/(pkcs7|rsa2048|signature)", true)]
#[case::credentials("identity-credentials/ec2/.*", true)]
fn a_pattern_that_lets_nothing_through_is_an_error(#[case] pattern: &str, #[case] is_denied_segment: bool) {
    let error = Paths::new(PassThrough::Default, &[pattern.to_owned()]).unwrap_err();
    let want = if is_denied_segment {
        BadPattern::Never(pattern.to_owned())
    } else {
        BadPattern::Nothing(pattern.to_owned())
    };
    assert_eq!(error, want);
}

#[rstest]
#[case(".*")]
#[case("user-data|public-ipv4")]
#[case("/latest/.*")]
#[case("/.*")]
#[case("tags/instance/iam")]
#[case("tags/instance/Cost Center")]
#[case("/latest/meta-data/tags/instance/.*credential.*")]
#[case("dynamic/instance-identity/.*")]
#[case("(?i)PUBLIC-.*")]
#[case("[a-z-]+")]
#[case("new-category/.{1,64}")]
fn a_pattern_that_lets_something_through_is_accepted(#[case] pattern: &str) {
    paths(PassThrough::None, &[pattern]);
}

const META_DATA: &str = "ami-id\nblock-device-mapping/\nhostname\niam/\nidentity-credentials/\ninstance-id\n\
    managed-ssh-keys/\nnetwork/\nplacement/\npublic-keys/\nservices/\ntags/";

#[rstest]
#[case("/latest/meta-data/", PassThrough::Default, &[], META_DATA,
    "ami-id\nblock-device-mapping/\nhostname\ninstance-id\nnetwork/\nplacement/\nservices/\ntags/")]
#[case("/latest/meta-data", PassThrough::Minimal, &[], META_DATA, "placement/")]
#[case("/latest/meta-data/", PassThrough::None, &["tags/instance/Name"], META_DATA, "tags/")]
#[case("/latest/meta-data/", PassThrough::None, &[".*"], META_DATA,
    "ami-id\nblock-device-mapping/\nhostname\ninstance-id\nnetwork/\nplacement/\nservices/\ntags/")]
#[case("/latest/", PassThrough::Default, &[], "dynamic\nmeta-data\nuser-data", "dynamic\nmeta-data")]
#[case("/", PassThrough::Default, &[], "1.0\n2021-07-15\nlatest\nnewest", "1.0\n2021-07-15\nlatest")]
#[case("/latest/dynamic/instance-identity/", PassThrough::Default, &[], "document\npkcs7\nrsa2048\nsignature\n", "document")]
#[case("/latest/meta-data/tags/instance", PassThrough::None, &["tags/instance/Cost.*"],
    "Cost Center\nName\nCost%41\nCost?\niam", "Cost Center\nCost%41\nCost?")]
#[case("/latest/meta-data/placement", PassThrough::Minimal, &[], "10.1.2.3 is no entry", "")]
fn a_list_shows_only_entries_that_may_be_read(
    #[case] list: &str,
    #[case] pass_through: PassThrough,
    #[case] patterns: &[&str],
    #[case] entries: &str,
    #[case] want: &str,
) {
    let paths = paths(pass_through, patterns);
    let Route::Node(list) = paths.classify(list) else {
        panic!("{list} is refused");
    };
    assert!(list.is_listing());
    assert_eq!(paths.visible(&list, entries, false), want);
    let with_role = paths.visible(&list, entries, true);
    let with_role: Vec<&str> = with_role.lines().collect();
    assert!(with_role.is_sorted() || !list.lists_roles(), "{with_role:?}");
    let others = with_role.iter().filter(|entry| **entry != "iam/");
    assert_eq!(others.copied().collect::<Vec<_>>().join("\n"), want);
    assert_eq!(
        with_role.contains(&"iam/"),
        list.as_str().trim_end_matches('/').ends_with("/meta-data")
    );
}

/// Paths that allow everything that a flag can allow.
static ALL: LazyLock<Paths> = LazyLock::new(|| paths(PassThrough::Default, &[".*"]));

/// Generates paths from bytes and words that attackers use.
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
        "tags",
        "instance",
        "meta-data/tags/instance/",
        "%255c",
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

/// Checks what must hold for every classified path.
fn check(paths: &Paths, target: &str) -> Result<(), TestCaseError> {
    let route = paths.classify(target);
    match &route {
        Route::Node(passed) => {
            let passed = passed.as_str();
            // The path that is passed on is the one that was matched: it is plain, has the same route, and is not a
            // secret.
            prop_assert_eq!(&paths.classify(passed), &route);
            prop_assert!(passed.bytes().all(|byte| byte.is_ascii_graphic()), "{}", passed);
            let is_of_tags = passed
                .splitn(3, '/')
                .nth(2)
                .is_some_and(|rest| rest.starts_with("meta-data/tags/instance/"));
            prop_assert!(!passed.contains("//"), "{}", passed);
            prop_assert!(is_of_tags || !passed.contains('%'), "{}", passed);
            prop_assert!(!passed.contains(['\\', ';', '?', '#']), "{}", passed);
            for segment in passed.split('/') {
                let segment = segment.to_lowercase();
                prop_assert!(segment != "." && segment != "..", "{}", passed);
                prop_assert!(
                    is_of_tags
                        || !DENIED_SEGMENTS.contains(&segment.as_str()) && !segment.contains("credential"),
                    "{}",
                    passed
                );
            }
            // Decoding the path once more does not change it.
            prop_assert!(!passed.contains("%25") || is_of_tags, "{}", passed);
        }
        // Nothing is passed on for these.
        Route::Role { .. } | Route::Roles | Route::Iam | Route::Info | Route::Token | Route::Refused(_) => {}
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn the_short_and_the_full_classification_agree(
        name in prop_oneof!["[a-zA-Z0-9+=,.@_%/?~-]{0,70}", ".{0,20}"]
    ) {
        let target = format!("/latest/meta-data/iam/security-credentials/{name}");
        if let Some(route) = usual(&target) {
            prop_assert_eq!(route, Paths::default().classify_any(&target));
        }
    }

    #[test]
    fn only_the_matched_path_is_passed_on(target in nasty()) {
        check(&Paths::default(), &target)?;
        check(&ALL, &target)?;
    }

    #[test]
    fn any_text_passes_on_only_the_matched_path(target in "/?\\PC{0,60}") {
        check(&ALL, &target)?;
    }

    /// The HTTP library accepts these targets from a connection.
    #[test]
    fn any_bytes_pass_on_only_the_matched_path(bytes in prop::collection::vec(any::<u8>(), 0..60), nasty in nasty()) {
        for target in [&b"/"[..], nasty.as_bytes()].map(|start| [start, &bytes].concat()) {
            let Ok(uri) = hyper::Uri::try_from(target) else { continue };
            if let Some(path) = uri.path_and_query() {
                check(&ALL, path.as_str())?;
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
        let route = ALL.classify(&format!("/{target}"));
        let is_kept = !matches!(route, Route::Node(_));
        prop_assert!(is_kept, "{:?} for {}", route, target);
    }
}
