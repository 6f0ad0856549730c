// SPDX-License-Identifier: Apache-2.0
//! Where the agent listens.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

/// Port of the probes.
const HEALTH_PORT: u16 = 9911;

/// Both loopback addresses: nobody but the node reaches them, and one of them is there in a cluster of any family.
pub(super) fn loopback() -> Vec<SocketAddr> {
    vec![(Ipv4Addr::LOCALHOST, HEALTH_PORT).into(), (Ipv6Addr::LOCALHOST, HEALTH_PORT).into()]
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// A list, or one address, as `healthAddress` had it.
pub(super) fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    let texts = match OneOrMany::deserialize(deserializer) {
        Ok(OneOrMany::One(text)) => vec![text],
        Ok(OneOrMany::Many(texts)) => texts,
        Err(_) => return Err(D::Error::custom("healthAddresses: not a list of addresses such as 127.0.0.1:9911")),
    };
    let parse = |text: String| {
        text.parse().map_err(|_| {
            D::Error::custom(format!("healthAddresses: '{text}' is not an address with a port, such as 127.0.0.1:9911"))
        })
    };
    texts.into_iter().map(parse).collect()
}

/// Where metrics are served. Every address of the node, which its pods reach too, has to be asked for: `any:9912`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct MetricsAddress(SocketAddr);

impl MetricsAddress {
    /// To listen on.
    #[must_use]
    pub const fn socket(self) -> SocketAddr {
        self.0
    }

    /// Every address of the node.
    #[must_use]
    pub fn is_any(self) -> bool {
        self.0.ip().is_unspecified()
    }
}

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(port) = text.strip_prefix("any:").and_then(|port| port.parse().ok()) {
            return Ok(Self((Ipv6Addr::UNSPECIFIED, port).into()));
        }
        let address: SocketAddr = text.parse().map_err(|_| {
            format!("'{text}' is not an address with a port; write one such as 127.0.0.1:9912, or any:9912")
        })?;
        if address.ip().is_unspecified() {
            let port = address.port();
            return Err(format!(
                "{text} is every address of the node, for its pods too; name one, or write any:{port} if that is meant"
            ));
        }
        Ok(Self(address))
    }
}

impl TryFrom<String> for MetricsAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // serde_yaml tells no path for these.
        text.parse().map_err(|error| format!("metricsAddress: {error}"))
    }
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_any() { write!(f, "any:{}", self.0.port()) } else { self.0.fmt(f) }
    }
}

impl From<MetricsAddress> for String {
    fn from(address: MetricsAddress) -> Self {
        address.to_string()
    }
}
