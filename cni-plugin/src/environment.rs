// SPDX-License-Identifier: Apache-2.0
//! The `CNI_*` variables: CNI spec 1.1.0, "Parameters".

use std::{net::IpAddr, str::FromStr};

use ipnet::IpNet;
use weft_api::{Mac, PodRef};

use crate::error::CniError;

/// Longest interface name in bytes (`IFNAMSIZ` less the closing zero).
pub(crate) const IFNAME_MAX: usize = 15;

/// The verb.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Command {
    /// Make an attachment.
    Add,
    /// Remove an attachment.
    Del,
    /// Verify an attachment.
    Check,
    /// Remove every attachment that the runtime does not know.
    Gc,
    /// Can ADD be served?
    Status,
    /// Tell the supported versions.
    Version,
}

impl FromStr for Command {
    type Err = CniError;

    fn from_str(text: &str) -> Result<Self, CniError> {
        Ok(match text {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            _ => {
                return Err(CniError::environment(format!(
                    "CNI_COMMAND '{text}' is not a CNI verb; set it to ADD, DEL, CHECK, GC, STATUS or VERSION"
                )));
            }
        })
    }
}

/// The parameters of a verb on one attachment, validated.
#[derive(Clone, Debug)]
pub struct Environment {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_NETNS`; may be empty.
    pub netns: String,
    /// `CNI_ARGS`.
    pub args: Args,
}

impl Environment {
    /// Reads and validates the variables of ADD and CHECK.
    ///
    /// # Errors
    /// The first variable that is missing or wrong, by name.
    pub fn read(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        let mut environment = Self::read_key(variable)?;
        environment.args = Args::parse(&variable("CNI_ARGS").unwrap_or_default())?;
        Ok(environment)
    }

    /// Reads only what names the attachment: DEL does not look at `CNI_ARGS`.
    ///
    /// # Errors
    /// The first variable that is missing or wrong, by name.
    pub fn read_key(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        let required = |name: &str| {
            variable(name).filter(|value| !value.is_empty()).ok_or_else(|| {
                CniError::environment(format!("the environment variable {name} is missing; the runtime must set it"))
            })
        };
        let container_id = required("CNI_CONTAINERID")?;
        if !is_identifier(&container_id) {
            return Err(CniError::environment(format!(
                "CNI_CONTAINERID '{container_id}' must begin with a letter or digit and hold only letters, digits, \
                 '_', '.' and '-'"
            )));
        }
        let ifname = required("CNI_IFNAME")?;
        check_ifname(&ifname).map_err(|why| CniError::environment(format!("CNI_IFNAME '{ifname}' {why}")))?;
        let netns = variable("CNI_NETNS").unwrap_or_default();
        Ok(Self { container_id, ifname, netns, args: Args::default() })
    }
}

/// `CNI_ARGS`: CNI conventions, "CNI_ARGS", and the keys that Kubernetes runtimes pass.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Args {
    /// `K8S_POD_NAMESPACE`, `K8S_POD_NAME` and `K8S_POD_UID`.
    pub pod: Option<PodRef>,
    /// `IP`: addresses asked for, with or without a prefix length, separated by commas.
    pub addresses: Vec<IpAddr>,
    /// `MAC`.
    pub mac: Option<Mac>,
}

impl Args {
    fn parse(text: &str) -> Result<Self, CniError> {
        let (mut args, mut unknown, mut ignore) = (Self::default(), Vec::new(), false);
        let (mut namespace, mut name, mut uid) = (None, None, None);
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| {
                CniError::environment(format!("CNI_ARGS has '{pair}', which is not KEY=VALUE; separate pairs by ';'"))
            })?;
            let filled = || Some(value.to_owned()).filter(|value| !value.is_empty());
            match key {
                "IgnoreUnknown" => ignore = parse_bool(value)?,
                "K8S_POD_NAMESPACE" => namespace = filled(),
                "K8S_POD_NAME" => name = filled(),
                "K8S_POD_UID" => uid = filled(),
                "K8S_POD_INFRA_CONTAINER_ID" => {}
                "IP" => args.addresses = parse_addresses(value)?,
                "MAC" => args.mac = Some(parse_mac(value)?),
                _ => unknown.push(key),
            }
        }
        if let (false, Some(key)) = (ignore, unknown.first()) {
            return Err(CniError::environment(format!(
                "CNI_ARGS has the unknown key '{key}'; remove it, or set IgnoreUnknown=1"
            )));
        }
        args.pod = pod(namespace, name, uid)?;
        Ok(args)
    }
}

fn pod(namespace: Option<String>, name: Option<String>, uid: Option<String>) -> Result<Option<PodRef>, CniError> {
    match (namespace, name) {
        (Some(namespace), Some(name)) => Ok(Some(PodRef { namespace, name, uid })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(CniError::environment("CNI_ARGS has K8S_POD_NAMESPACE without K8S_POD_NAME; set both")),
        (None, Some(_)) => Err(CniError::environment("CNI_ARGS has K8S_POD_NAME without K8S_POD_NAMESPACE; set both")),
    }
}

fn parse_bool(value: &str) -> Result<bool, CniError> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(CniError::environment(format!("CNI_ARGS has IgnoreUnknown='{value}'; set it to 1, true, 0 or false"))),
    }
}

fn parse_addresses(value: &str) -> Result<Vec<IpAddr>, CniError> {
    let texts = value.split(',').filter(|text| !text.is_empty());
    texts
        .map(|text| parse_address(text).map_err(|why| CniError::environment(format!("IP of CNI_ARGS: {why}"))))
        .collect()
}

fn parse_mac(value: &str) -> Result<Mac, CniError> {
    value.parse().map_err(|error| CniError::environment(format!("MAC of CNI_ARGS: {error}")))
}

/// Reads an address with or without a prefix length.
pub(crate) fn parse_address(text: &str) -> Result<IpAddr, String> {
    let parsed = text.parse().or_else(|_| text.parse::<IpNet>().map(|net| net.addr()));
    parsed.map_err(|_| format!("'{text}' is not an address such as 10.1.2.3 or 2001:db8::3/64"))
}

/// Is `text` a name as the CNI spec asks of networks and containers?
pub(crate) fn is_identifier(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// Would the kernel take `name` for an interface (`dev_valid_name`)?
pub(crate) fn check_ifname(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > IFNAME_MAX {
        return Err("must be 1 to 15 bytes long");
    }
    if matches!(name, "." | "..") {
        return Err("must not be '.' or '..'");
    }
    if name.contains(|c: char| matches!(c, '/' | ':') || c.is_whitespace()) {
        return Err("must not hold '/', ':' or white space");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Args, Environment, check_ifname};
    use crate::error::Code;

    #[test]
    fn args_of_a_kubernetes_runtime_name_the_pod() {
        let args = Args::parse(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u1;X=1",
        )
        .unwrap();
        let pod = args.pod.unwrap();
        assert_eq!((pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_deref()), ("shop", "web-1", Some("u1")));
    }

    #[test]
    fn args_carry_addresses_and_mac() {
        let args = Args::parse("IP=10.1.2.3/24,2001:db8::3;MAC=02:00:00:00:00:07").unwrap();
        assert_eq!(args.addresses, ["10.1.2.3".parse::<std::net::IpAddr>().unwrap(), "2001:db8::3".parse().unwrap()]);
        assert_eq!(args.mac.unwrap().to_string(), "02:00:00:00:00:07");
    }

    #[test]
    fn wrong_args_are_refused_by_name() {
        for (text, part) in [
            ("FOO=1", "unknown key 'FOO'"),
            ("IgnoreUnknown=0;FOO=1", "unknown key 'FOO'"),
            ("IgnoreUnknown=perhaps", "IgnoreUnknown='perhaps'"),
            ("IP", "'IP', which is not KEY=VALUE"),
            ("IP=10.0.0.256", "'10.0.0.256'"),
            ("MAC=zz", "'zz'"),
            ("K8S_POD_NAME=a", "K8S_POD_NAMESPACE"),
            ("K8S_POD_NAMESPACE=a", "K8S_POD_NAME"),
        ] {
            let error = Args::parse(text).unwrap_err();
            assert_eq!(error.code, Code::Environment, "{text}");
            assert!(error.msg.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn missing_and_wrong_variables_are_refused_by_name() {
        let read = |id: &str, ifname: &str| {
            let (id, ifname) = (id.to_owned(), ifname.to_owned());
            Environment::read(&move |name: &str| match name {
                "CNI_CONTAINERID" => Some(id.clone()),
                "CNI_IFNAME" => Some(ifname.clone()),
                _ => None,
            })
        };
        assert!(read("c1", "eth0").is_ok());
        assert!(read("", "eth0").unwrap_err().msg.contains("CNI_CONTAINERID"));
        assert!(read("../x", "eth0").unwrap_err().msg.contains("'../x'"));
        assert!(read("c1", "").unwrap_err().msg.contains("CNI_IFNAME"));
        assert!(read("c1", "a/b").unwrap_err().msg.contains("'a/b'"));
    }

    #[test]
    fn interface_names_follow_the_kernel() {
        for name in ["", ".", "..", "a:b", "a b", "a\tb", "sixteen-bytes-xx"] {
            assert!(check_ifname(name).is_err(), "{name:?}");
        }
        for name in ["eth0", "net1", "a.b", "fifteen-bytes-x"] {
            assert!(check_ifname(name).is_ok(), "{name:?}");
        }
    }
}
