use super::*;
use proptest::prelude::*;
use rstest::rstest;

#[rstest]
#[case::name("app", Ok("arn:aws:iam::123456789012:role/app"))]
#[case::path("team/app", Ok("arn:aws:iam::123456789012:role/team/app"))]
#[case::slash("/app", Ok("arn:aws:iam::123456789012:role/app"))]
#[case::slash_path("/team/app", Ok("arn:aws:iam::123456789012:role/team/app"))]
#[case::blanks(" app\n", Ok("arn:aws:iam::123456789012:role/app"))]
#[case::odd_name("a+=,.@_-z", Ok("arn:aws:iam::123456789012:role/a+=,.@_-z"))]
#[case::arn(
    "arn:aws:iam::999999999999:role/x/y",
    Ok("arn:aws:iam::999999999999:role/x/y")
)]
#[case::upper_arn("ARN:aws:iam::999999999999:role/y", Ok("arn:aws:iam::999999999999:role/y"))]
#[case::china(
    "arn:aws-cn:iam::999999999999:role/y",
    Ok("arn:aws-cn:iam::999999999999:role/y")
)]
#[case::gov(
    "arn:aws-us-gov:iam::999999999999:role/y",
    Ok("arn:aws-us-gov:iam::999999999999:role/y")
)]
#[case::iso(
    "arn:aws-iso-b:iam::999999999999:role/y",
    Ok("arn:aws-iso-b:iam::999999999999:role/y")
)]
#[case::eusc(
    "arn:aws-eusc:iam::999999999999:role/y",
    Ok("arn:aws-eusc:iam::999999999999:role/y")
)]
#[case::empty("  ", Err(RoleError::Empty))]
#[case::inner_blank("my role", Err(RoleError::Name))]
#[case::trailing_slash("team/", Err(RoleError::Name))]
#[case::empty_part("team//app", Err(RoleError::Path))]
#[case::newline_inside("a\nb", Err(RoleError::Name))]
#[case::umlaut("röle", Err(RoleError::Name))]
#[case::user_arn("arn:aws:iam::123456789012:user/x", Err(RoleError::NotARoleArn))]
#[case::short_arn("arn:aws:iam", Err(RoleError::NotARoleArn))]
#[case::region("arn:aws:iam:eu-west-1:123456789012:role/x", Err(RoleError::NotARoleArn))]
#[case::profile("arn:aws:iam::123456789012:instance-profile/x", Err(RoleError::NotARoleArn))]
#[case::account("arn:aws:iam::12345:role/x", Err(RoleError::Account))]
#[case::account_letters("arn:aws:iam::12345678901x:role/x", Err(RoleError::Account))]
#[case::partition("arn:amazon:iam::123456789012:role/x", Err(RoleError::Partition))]
#[case::no_name("arn:aws:iam::123456789012:role/", Err(RoleError::Name))]
fn a_written_role_is_parsed_or_refused(#[case] text: &str, #[case] want: Result<&str, RoleError>) {
    let base = "arn:aws:iam::123456789012:role/".parse().unwrap();
    let got = resolved(text, &base);
    assert_eq!(
        got.as_ref().map(RoleArn::as_str),
        want.as_ref().copied(),
        "{text}"
    );
    let name = want.map(|arn| arn.rsplit('/').next().unwrap());
    assert_eq!(
        text.parse::<WrittenRole>().as_ref().map(WrittenRole::name),
        name.as_ref().copied()
    );
}

fn resolved(text: &str, base: &BaseArn) -> Result<RoleArn, RoleError> {
    Ok(text.parse::<WrittenRole>()?.resolve(Some(base))?.unwrap())
}

#[test]
fn limits_of_name_and_path_are_those_of_iam() {
    let base: BaseArn = "arn:aws:iam::123456789012:role/".parse().unwrap();
    assert!(resolved(&"n".repeat(64), &base).is_ok());
    assert_eq!(resolved(&"n".repeat(65), &base), Err(RoleError::Name));
    assert!(resolved(&format!("{}/n", "p".repeat(510)), &base).is_ok());
    assert_eq!(
        resolved(&format!("{}/n", "p".repeat(511)), &base),
        Err(RoleError::Path)
    );
    let base: BaseArn = "arn:aws:iam::123456789012:role/k8s/".parse().unwrap();
    assert_eq!(
        resolved(&format!("{}/n", "p".repeat(510)), &base),
        Err(RoleError::Path),
        "together"
    );
}

#[rstest]
#[case("aws")]
#[case("aws-cn")]
#[case("aws-us-gov")]
#[case("aws-iso")]
#[case("aws-iso-b")]
#[case("aws-iso-e")]
#[case("aws-iso-f")]
#[case("aws-eusc")]
fn names_resolve_in_the_partition_and_account_of_the_nodes_role(#[case] partition: &str) {
    for of_node in [
        format!("arn:{partition}:iam::210987654321:instance-profile/nodes.example.com"),
        format!("arn:{partition}:iam::210987654321:instance-profile/a/path/nodes"),
        format!("arn:{partition}:sts::210987654321:assumed-role/nodes/i-0abc"),
    ] {
        let base = BaseArn::of_account(&of_node).unwrap();
        let arn = resolved("team/app", &base).unwrap();
        assert_eq!(
            arn.as_str(),
            format!("arn:{partition}:iam::210987654321:role/team/app")
        );
        assert_eq!((arn.partition(), arn.account()), (partition, "210987654321"));
    }
}

#[test]
fn an_unsuitable_arn_gives_no_base() {
    for text in [
        "",
        "arn:aws:iam::1:instance-profile/x",
        "arn:aws:s3:::x",
        "arn:aws:iam::123456789012",
        "x:aws:iam::123456789012:y",
    ] {
        assert_eq!(BaseArn::of_account(text), None, "{text}");
    }
}

#[rstest]
#[case("arn:aws:iam::123456789012:role", "arn:aws:iam::123456789012:role/")]
#[case("arn:aws:iam::123456789012:role/", "arn:aws:iam::123456789012:role/")]
#[case("arn:aws:iam::123456789012:role/k8s", "arn:aws:iam::123456789012:role/k8s/")]
#[case(
    "Arn:aws-cn:iam::123456789012:role/a/b/",
    "arn:aws-cn:iam::123456789012:role/a/b/"
)]
fn a_base_may_have_a_path_and_a_last_slash(#[case] text: &str, #[case] want: &str) {
    assert_eq!(text.parse::<BaseArn>().unwrap().prefix(), want);
}

#[test]
fn a_malformed_base_is_refused() {
    for text in [
        "",
        "role/",
        "arn:aws:iam::1:role/",
        "arn:aws:s3:::bucket",
        "arn:aws:iam::123456789012:roles/",
        // The values of kube2iam's chart (helm/charts, stable/kube2iam) have an account of ten digits.
        "arn:aws:iam::0123456789:role/",
    ] {
        assert!(text.parse::<BaseArn>().is_err(), "{text}");
    }
}

/// jtblin/kube2iam#71: kube2iam took the placeholder for a path and put it before the name of every role.
#[rstest]
#[case("arn:aws:iam::123456789012:role/<role-name>", "<role-name>")]
#[case("arn:aws:iam::123456789012:role/${TEAM}/", "${TEAM}")]
#[case("arn:aws:iam::123456789012:role/$TEAM", "$TEAM")]
fn a_base_with_a_placeholder_is_refused(#[case] text: &str, #[case] found: &str) {
    assert_eq!(
        text.parse::<BaseArn>(),
        Err(RoleError::Placeholder(found.to_owned()))
    );
}

#[test]
fn a_name_needs_a_base_and_an_arn_does_not() {
    let name: WrittenRole = "app".parse().unwrap();
    assert_eq!(name.resolve(None), Ok(None));
    let arn: WrittenRole = "arn:aws:iam::123456789012:role/x".parse().unwrap();
    assert!(arn.resolve(None).unwrap().is_some());
}

proptest! {
    #[test]
    fn any_text_gives_a_valid_arn_or_an_error(text in "\\PC{0,120}") {
        let base = "arn:aws:iam::123456789012:role/".parse().unwrap();
        if let Ok(arn) = resolved(&text, &base) {
            prop_assert_eq!(arn.as_str().parse::<RoleArn>().unwrap(), arn.clone());
            prop_assert!(is_name(arn.name()));
        }
    }
}

#[rstest]
#[case("app", true)]
#[case("team/app", true)]
#[case("base/team/app", true)]
#[case("arn:aws:iam::123456789012:role/base/team/app", true)]
#[case("ARN:aws:iam::123456789012:role/base/team/app", true)]
#[case("", false)]
#[case("/app", false)]
#[case("pp", false)]
#[case("eam/app", false)]
#[case("other/app", false)]
#[case("role/base/team/app", false)]
#[case("app/", false)]
#[case("App", false)]
#[case("arn:aws:iam::123456789012:role/app", false)]
#[case("arn:aws:iam::999999999999:role/base/team/app", false)]
fn a_role_is_matched_by_its_arn_or_by_its_name_with_any_part_of_its_path(
    #[case] text: &str,
    #[case] is_called: bool,
) {
    let role: RoleArn = "arn:aws:iam::123456789012:role/base/team/app".parse().unwrap();
    assert_eq!(role.is_called(text), is_called);
}
