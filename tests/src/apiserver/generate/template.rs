// SPDX-License-Identifier: Apache-2.0

//! A text with places to fill in.

/// Pieces of a text, and the numbers of the values between them.
pub(super) struct Template {
    pieces: Vec<(String, Option<usize>)>,
}

impl Template {
    /// Of `text`, in which `@NAME@` stands for the value of that name.
    pub(super) fn new(text: &str, names: &[&str]) -> Self {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((at, number, length)) = first(rest, names) {
            pieces.push((rest[..at].to_owned(), Some(number)));
            rest = &rest[at + length..];
        }
        pieces.push((rest.to_owned(), None));
        Self { pieces }
    }

    /// The text with `values`, in the order of the names.
    pub(super) fn fill(&self, values: &[&str]) -> String {
        let mut text = String::with_capacity(8192);
        for (piece, number) in &self.pieces {
            text += piece;
            text += number.and_then(|number| values.get(number)).unwrap_or(&"");
        }
        text
    }
}

/// The first place in `text`: where it is, its name's number, its length.
fn first(text: &str, names: &[&str]) -> Option<(usize, usize, usize)> {
    let places = names.iter().enumerate().filter_map(|(number, name)| {
        let mark = format!("@{name}@");
        text.find(&mark).map(|at| (at, number, mark.len()))
    });
    places.min()
}

#[cfg(test)]
mod tests {
    use super::Template;

    #[test]
    fn places_are_filled() {
        let template = Template::new("a@X@b@Y@@X@@z@c", &["X", "Y"]);
        assert_eq!(template.fill(&["1", "2"]), "a1b21@z@c");
    }
}
