// SPDX-License-Identifier: Apache-2.0

//! Fills `{{NAME}}` in the configuration files under `tests/cluster/`.

use anyhow::{Result, ensure};

/// Returns `template` with every `{{NAME}}` replaced by its value.
///
/// # Errors
/// A name in `values` does not occur, or one stays unfilled.
pub(crate) fn render(template: &str, values: &[(&str, String)]) -> Result<String> {
    let mut text = template.to_owned();
    for (name, value) in values {
        let mark = format!("{{{{{name}}}}}");
        ensure!(text.contains(&mark), "the template has no {mark}");
        text = text.replace(&mark, value);
    }
    if let Some((_, rest)) = text.split_once("{{") {
        anyhow::bail!("the template's {{{{{}}}}} has no value", rest.split("}}").next().unwrap_or_default());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mark_is_filled() {
        assert_eq!(render("a {{B}} {{B}}", &[("B", "c".into())]).unwrap(), "a c c");
    }

    #[test]
    fn an_unfilled_mark_is_an_error_that_names_it() {
        assert!(render("{{A}}", &[]).unwrap_err().to_string().contains("{{A}}"));
        assert!(render("", &[("A", String::new())]).is_err());
    }
}
