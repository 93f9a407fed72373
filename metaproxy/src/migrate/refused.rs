//! Refuses values with which the agent would not start, because they would fail only on the cluster otherwise.

use serde_json::Value;

use super::MigrateError;
use super::values::Values;
use crate::cli::{Cli, Command};

/// Pairs each value of the chart with the agent's flag that it becomes (`templates/daemonset.yaml`).
const FLAGS: [(&str, &str, &str); 14] = [
    ("", "namespacePolicy", "--namespace-policy"),
    ("roles", "baseArn", "--base-role-arn"),
    ("roles", "default", "--default-role"),
    ("roles", "roleAnnotation", "--role-annotation"),
    ("roles", "externalIdAnnotation", "--external-id-annotation"),
    ("roles", "allowedRolesAnnotation", "--allowed-roles-annotation"),
    ("roles", "allowedRolesStyle", "--allowed-roles-style"),
    ("roles", "permittedMatch", "--permitted-match"),
    ("sessions", "assumeRoleArn", "--assume-role-arn"),
    ("sessions", "duration", "--session-duration"),
    ("sessions", "region", "--region"),
    ("metadata", "endpoint", "--imds-endpoint"),
    ("metadata", "passThrough", "--pass-through"),
    ("metadata", "allowPaths", "--allow-path"),
];

/// Tries the values as flags of the agent.
///
/// # Errors
/// If the agent would refuse a flag; the error has the agent's sentence and the flags from which the value comes.
pub fn check(values: &Values) -> Result<(), MigrateError> {
    let mut words = vec![
        "metaproxy".to_owned(),
        "run".to_owned(),
        "--manifests=/".to_owned(),
    ];
    for (section, key, flag) in FLAGS {
        match values.get(section, key) {
            Some((Value::Array(items), _)) => {
                words.extend(
                    items
                        .iter()
                        .filter_map(Value::as_str)
                        .map(|item| format!("{flag}={item}")),
                );
            }
            Some((Value::String(text), _)) => words.push(format!("{flag}={text}")),
            _ => {}
        }
    }
    let Err(problem) = refused(&words) else {
        return Ok(());
    };
    let of = FLAGS.iter().find(|(_, _, flag)| problem.contains(flag));
    let of = of.and_then(|(section, key, _)| Some(values.get(section, key)?.1));
    Err(MigrateError::Refused {
        of: of.unwrap_or("its flags").to_owned(),
        problem,
    })
}

fn refused(words: &[String]) -> Result<(), String> {
    let cli = Cli::from_words_alone(words).map_err(|error| {
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default();
        line.trim_start_matches("error: ").to_owned()
    })?;
    let Command::Run(args) = cli.command else {
        return Ok(());
    };
    args.settings().map(|_| ()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// Checks that the list is complete: a value that `migrate` writes and that is not listed is never tried.
    #[test]
    fn the_chart_passes_each_of_these_values_by_its_flag() {
        let template = include_str!("../../../deploy/helm/metaproxy/templates/daemonset.yaml");
        for (section, key, flag) in FLAGS {
            let value = if section.is_empty() {
                key.to_owned()
            } else {
                format!("{section}.{key}")
            };
            let has_value = template.contains(&format!("Values.{value}"));
            let variable = flag
                .replacen("--", "METAPROXY_", 1)
                .replace('-', "_")
                .to_uppercase();
            let has_flag = template.contains(flag) || template.contains(&variable);
            assert!(has_value && has_flag, "{value}, {flag}");
        }
    }

    #[rstest]
    #[case("roles", "allowedRolesAnnotation", "bad key", "--namespace-key")]
    #[case("roles", "baseArn", "foo", "--base-role-arn")]
    #[case("roles", "default", "a b", "--default-role")]
    #[case("sessions", "duration", "12h", "--session-duration")]
    #[case("metadata", "endpoint", "ftp://x", "--metadata-addr")]
    fn a_value_that_the_agent_refuses_is_reported_with_its_source(
        #[case] section: &'static str,
        #[case] key: &'static str,
        #[case] value: &str,
        #[case] flag: &str,
    ) {
        let mut values = Values::new("kube2iam", &[]);
        values.set("", "namespacePolicy", "off", "");
        assert_eq!(check(&values), Ok(()));
        values.set(section, key, value, flag);
        let error = check(&values).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("{flag}: the agent would refuse")),
            "{error}"
        );
    }
}
