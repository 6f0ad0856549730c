// SPDX-License-Identifier: Apache-2.0
//! Ethernet addresses.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// An Ethernet address; in JSON the usual `02:00:00:00:00:01`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

/// The text is not six colon-separated hexadecimal bytes.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("'{0}' is not an ethernet address such as 02:00:00:00:00:01")]
pub struct ParseMacError(String);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseMacError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        parts.next().map_or(Ok(Self(bytes)), |_| Err(wrong()))
    }
}

impl TryFrom<String> for Mac {
    type Error = ParseMacError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::Mac;

    #[test]
    fn text_and_bytes_agree() {
        let mac: Mac = "02:77:65:66:74:0a".parse().unwrap();
        assert_eq!(mac, Mac([2, 0x77, 0x65, 0x66, 0x74, 10]));
        assert_eq!(mac.to_string(), "02:77:65:66:74:0a");
    }

    #[test]
    fn other_texts_are_refused_by_name() {
        for text in ["", "02:77:65:66:74", "02:77:65:66:74:0a:0b", "2:77:65:66:74:a", "gg:77:65:66:74:0a"] {
            let error = text.parse::<Mac>().unwrap_err();
            assert!(error.to_string().contains(&format!("'{text}'")), "{error}");
        }
    }
}
