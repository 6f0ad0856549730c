// SPDX-License-Identifier: Apache-2.0
//! The command line: words in order, options by name.

use std::str::FromStr;

/// What was not taken yet of the command line.
pub(crate) struct Arguments {
    rest: Vec<String>,
}

impl Arguments {
    pub(crate) fn new(arguments: impl Iterator<Item = String>) -> Self {
        Self { rest: arguments.collect() }
    }

    /// Takes the next argument that is not an option.
    pub(crate) fn word(&mut self) -> Option<String> {
        let first = self.rest.first()?;
        (!first.starts_with("--")).then(|| self.rest.remove(0))
    }

    /// Takes the next word, which must be there.
    pub(crate) fn required(&mut self, what: &str) -> Result<String, String> {
        self.word().ok_or_else(|| format!("missing argument: {what}"))
    }

    /// Takes every `--name value`.
    pub(crate) fn every<T: FromStr>(&mut self, name: &str) -> Result<Vec<T>, String> {
        let mut values = Vec::new();
        while let Some(at) = self.rest.iter().position(|argument| argument == name) {
            if at + 1 >= self.rest.len() {
                return Err(format!("{name} needs a value"));
            }
            let text = self.rest.remove(at + 1);
            self.rest.remove(at);
            values.push(text.parse().map_err(|_| format!("{name}: cannot read '{text}'"))?);
        }
        Ok(values)
    }

    /// Takes `--name value`, the last one if there are several.
    pub(crate) fn option<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, String> {
        Ok(self.every(name)?.pop())
    }

    /// Nothing may be left.
    pub(crate) fn finish(&self) -> Result<(), String> {
        match self.rest.first() {
            Some(argument) => Err(format!("unknown argument: {argument}")),
            None => Ok(()),
        }
    }
}
