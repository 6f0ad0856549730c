// SPDX-License-Identifier: Apache-2.0
//! The agent's configuration: a YAML file, and flags or environment variables above it.

mod address;
mod check;
mod timeouts;

use std::{
    fmt, fs, io,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    path::PathBuf,
    str::FromStr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use weft_api::DnsSettings;
use weft_dataplane::MapSizes;

pub use self::{address::MetricsAddress, timeouts::ConnectionTimeouts};
use crate::model::{Mode, ServiceExposure};

/// Where the configuration file is unless `--config` says otherwise. Only this one may be absent.
pub const DEFAULT_PATH: &str = "/etc/weft/agent.yaml";

/// kube-proxy's port for load balancers.
const HEALTHZ_PORT: u16 = 10_256;
/// kube-proxy's port for the node's own programs.
const METRICS_PORT: u16 = 10_249;

/// Flags that go above the file.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Overrides {
    /// Configuration file [default: /etc/weft/agent.yaml, which may be absent]
    #[arg(long, global = true, env = "WEFT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Name of this node in the API [default: the host name]
    #[arg(long, global = true, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Where objects come from: `kubernetes`, or `dir:PATH` for a folder of manifests
    #[arg(long, global = true, env = "WEFT_SOURCE", value_name = "SOURCE")]
    pub source: Option<Source>,
    /// Address of the API server, such as https://10.0.0.1:6443 (no Service address: the agent is what makes those work)
    #[arg(long, global = true, env = "WEFT_API_SERVER", value_name = "URL")]
    pub api_server: Option<String>,
    /// Where metrics are served: an address of the node with a port, or `any:9912` [default: nowhere]
    #[arg(long, global = true, env = "WEFT_METRICS_ADDRESS", value_name = "ADDRESS")]
    pub metrics_address: Option<MetricsAddress>,
}

/// Where objects come from.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Source {
    /// A Kubernetes API server.
    #[default]
    Kubernetes,
    /// A folder of manifests.
    Dir(PathBuf),
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "kubernetes" => Ok(Self::Kubernetes),
            Some(("dir", path)) if path.starts_with('/') => Ok(Self::Dir(path.into())),
            _ => Err(format!("'{text}' is not a source; write 'kubernetes' or 'dir:/absolute/path'")),
        }
    }
}

impl TryFrom<String> for Source {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // serde_yaml tells no path for these.
        text.parse().map_err(|e| format!("source: {e}"))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kubernetes => f.write_str("kubernetes"),
            Self::Dir(path) => write!(f, "dir:{}", path.display()),
        }
    }
}

impl From<Source> for String {
    fn from(source: Source) -> Self {
        source.to_string()
    }
}

/// The configuration, complete and checked.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// Name of this node in the API; empty only before [`Config::load`] has filled in the host name.
    pub node_name: String,
    /// Where objects come from.
    pub source: Source,
    /// URL of the API server; none: from the kubeconfig or, in a pod, from the environment.
    pub api_server: Option<String>,
    /// Credentials for the API server; none: the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// Encapsulated or routed.
    pub mode: Mode,
    /// Pod CIDRs of this node, one per family at most; empty: those of its Node object.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// Service CIDRs of the cluster.
    #[serde(rename = "serviceCIDRs")]
    pub service_cidrs: Vec<IpNet>,
    /// How Services are reached from beyond the cluster.
    pub services: ServiceExposure,
    /// The device that leads out; none: that of the node's address, else that of the default route.
    pub uplink: Option<String>,
    /// Addresses of this node on the uplink, one per family at most; empty: read from the uplink.
    pub node_addresses: Vec<IpAddr>,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port of VXLAN.
    pub vxlan_port: u16,
    /// MTU of workloads; none: the uplink's, less 50 (70 with an IPv6 underlay) for encapsulation in mode vxlan.
    pub mtu: Option<u32>,
    /// Whether workloads reach the outside under the node's address.
    pub masquerade: Masquerade,
    /// Addresses of this node, singly or by prefix, that workloads are masqueraded with, each with one of them.
    pub masquerade_addresses: Vec<OwnAddresses>,
    /// Prefixes beyond the cluster that workloads reach under their own addresses.
    #[serde(rename = "nonMasqueradeCIDRs")]
    pub non_masquerade_cidrs: Vec<IpNet>,
    /// Native mode: pods of a node that is a neighbour on the uplink are heard from that node's Ethernet address only. Off where
    /// the network gives frames other source addresses than it answers ARP with.
    pub check_neighbours: bool,
    /// Ports that masqueraded connections use; none: the most that the node's own settings leave.
    pub masquerade_ports: Option<PortRange>,
    /// What TCP connections beyond the node are told of the largest segment.
    pub mss_clamp: MssClamp,
    /// What one workload may take of what all share.
    pub port_limits: PortLimits,
    /// When connections are over.
    pub connection_timeouts: ConnectionTimeouts,
    /// The local API's socket.
    pub socket: PathBuf,
    /// Files that live until reboot.
    pub run_dir: PathBuf,
    /// Files that outlive a reboot: attachments, the pod CIDRs, the last known state of the cluster.
    pub state_dir: PathBuf,
    /// Where maps and links are pinned, on a bpf file system.
    pub pin_dir: PathBuf,
    /// The binary of devices of vhost-user ports; none: `weft-vhost` beside the agent's executable.
    pub vhost_binary: Option<PathBuf>,
    /// The CNI plugin's installation.
    pub cni: Cni,
    /// Where health is served over HTTP, for probes; `healthAddress` with a single one is read too.
    #[serde(alias = "healthAddress", deserialize_with = "address::one_or_many")]
    pub health_addresses: Vec<SocketAddr>,
    /// Where metrics are served over HTTP; none: nowhere.
    pub metrics_address: Option<MetricsAddress>,
    /// Sample of allowed flows: one event in so many new flows while nobody follows; 0: none. Drops always make events.
    pub flow_sample: u32,
    /// Name service settings for guests and CNI results.
    pub dns: Dns,
    /// Entries of maps, where the programs' own sizes do not fit.
    pub map_sizes: MapSizes,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_name: String::new(),
            source: Source::default(),
            api_server: None,
            kubeconfig: None,
            mode: Mode::default(),
            pod_cidrs: Vec::new(),
            service_cidrs: Vec::new(),
            services: ServiceExposure::default(),
            uplink: None,
            node_addresses: Vec::new(),
            vni: 7765,
            vxlan_port: 8472,
            mtu: None,
            masquerade: Masquerade::default(),
            masquerade_addresses: Vec::new(),
            non_masquerade_cidrs: Vec::new(),
            check_neighbours: true,
            masquerade_ports: None,
            mss_clamp: MssClamp::default(),
            port_limits: PortLimits::default(),
            connection_timeouts: ConnectionTimeouts::default(),
            socket: weft_api::DEFAULT_SOCKET.into(),
            run_dir: "/run/weft".into(),
            state_dir: "/var/lib/weft".into(),
            pin_dir: "/sys/fs/bpf/weft".into(),
            vhost_binary: None,
            cni: Cni::default(),
            health_addresses: address::loopback(),
            metrics_address: None,
            flow_sample: 0,
            dns: Dns::default(),
            map_sizes: MapSizes::default(),
        }
    }
}

/// Whether workloads reach the outside under the node's address, by family.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Masquerade {
    /// IPv4.
    pub ipv4: bool,
    /// IPv6.
    pub ipv6: bool,
}

impl Default for Masquerade {
    fn default() -> Self {
        Self { ipv4: true, ipv6: true }
    }
}

/// Addresses of the node: one, or those of it that a prefix has.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct OwnAddresses(pub IpNet);

impl TryFrom<String> for OwnAddresses {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let net = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        net.map(Self).map_err(|_| {
            format!("masqueradeAddresses: '{text}' is neither an address nor a prefix, such as 192.0.2.20")
        })
    }
}

impl From<OwnAddresses> for String {
    fn from(OwnAddresses(net): OwnAddresses) -> Self {
        if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
    }
}

/// What TCP connections beyond the node are told of the largest segment (MSS).
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(untagged, expecting = "mssClamp: write true, false, or the most bytes of a segment, such as 1360")]
pub enum MssClamp {
    /// `true`: no more than the MTU of its way allows; `false`: what its ends say.
    Way(bool),
    /// No more than this, nor than the MTU of its way allows.
    Most(u16),
}

impl Default for MssClamp {
    fn default() -> Self {
        Self::Way(false)
    }
}

impl MssClamp {
    /// As the programs have it, see [`weft_abi::Config::mss_clamp`].
    #[must_use]
    pub const fn value(self) -> u16 {
        match self {
            Self::Way(false) => 0,
            Self::Way(true) => u16::MAX,
            Self::Most(most) => most,
        }
    }
}

/// What one workload may take of what all share; 0 is no limit.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct PortLimits {
    /// Part of each flow table, in percent.
    pub flow_table_percent: u32,
    /// New flows a second on average; twice as many at once.
    pub flows_per_second: u32,
    /// Answers of the node itself a second on average (ARP, neighbour discovery, DHCP, ICMP); twice as many at once.
    pub answers_per_second: u32,
    /// Datagrams in pieces a second on average; twice as many at once.
    pub fragmented_per_second: u32,
}

impl Default for PortLimits {
    fn default() -> Self {
        Self {
            flow_table_percent: 25,
            flows_per_second: weft_abi::FLOW_RATE,
            answers_per_second: weft_abi::ANSWER_RATE,
            fragmented_per_second: weft_abi::FRAGMENT_RATE,
        }
    }
}

/// An inclusive range of ports, written `61000-65535`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let range = text
            .split_once('-')
            .and_then(|(first, last)| Some(Self { first: first.trim().parse().ok()?, last: last.trim().parse().ok()? }))
            .filter(|range| range.first >= 1024 && range.first <= range.last);
        range.ok_or_else(|| format!("'{text}' is not a range of ports from 1024 up, such as 61000-65535"))
    }
}

impl TryFrom<String> for PortRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|e| format!("masqueradePorts: {e}"))
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        format!("{}-{}", range.first, range.last)
    }
}

/// The CNI plugin's installation.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Cni {
    /// Where the runtime looks for plugins.
    pub bin_dir: PathBuf,
    /// Where the runtime looks for network configurations.
    pub conf_dir: PathBuf,
    /// Whether the agent writes `05-weft.conflist` once it is able to serve.
    pub install: bool,
    /// The network's name in that file.
    pub name: String,
}

impl Default for Cni {
    fn default() -> Self {
        Self { bin_dir: "/opt/cni/bin".into(), conf_dir: "/etc/cni/net.d".into(), install: true, name: "weft".into() }
    }
}

/// Name service settings.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dns {
    /// Servers.
    pub nameservers: Vec<IpAddr>,
    /// Search list.
    pub search: Vec<String>,
}

impl From<Dns> for DnsSettings {
    fn from(Dns { nameservers, search }: Dns) -> Self {
        Self { nameservers, search }
    }
}

/// Why there is no configuration to run with.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there or not readable.
    #[error("cannot read the configuration {}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What `read` said.
        source: io::Error,
    },
    /// Not YAML, an unknown field, or a value of the wrong type.
    #[error("{}: {source}", file.display())]
    Parse {
        /// The file.
        file: PathBuf,
        /// What and where.
        source: serde_yaml::Error,
    },
    /// A value that cannot be right.
    #[error("{origin}: {field}: {problem}")]
    Invalid {
        /// The file, or `flags` where there is none.
        origin: String,
        /// The field's name in the file.
        field: &'static str,
        /// What is wrong, and the fix.
        problem: String,
    },
}

impl Config {
    /// Reads the file that `flags` name, puts `flags` above it, fills in the host name, and checks everything.
    ///
    /// # Errors
    /// See [`ConfigError`]; each names the file and the field.
    pub fn load(flags: &Overrides) -> Result<Self, ConfigError> {
        let file = flags.config.clone().unwrap_or_else(|| DEFAULT_PATH.into());
        let (text, origin) = match fs::read_to_string(&file) {
            Ok(text) => (text, file.display().to_string()),
            Err(e) if e.kind() == io::ErrorKind::NotFound && flags.config.is_none() => {
                (String::new(), "flags".to_owned())
            }
            Err(source) => return Err(ConfigError::Read { file, source }),
        };
        let mut config = Self::parse(&text).map_err(|source| ConfigError::Parse { file, source })?;
        config.override_with(flags);
        check::check(&config).map_err(|(field, problem)| ConfigError::Invalid { origin, field, problem })?;
        Ok(config)
    }

    /// Port at which load balancers ask for the node; none: it is switched off.
    #[must_use]
    pub fn healthz_port(&self) -> Option<NonZeroU16> {
        self.port(self.services.healthz_port, HEALTHZ_PORT)
    }

    /// Port of kube-proxy's metrics and mode; none: it is switched off.
    #[must_use]
    pub fn metrics_port(&self) -> Option<NonZeroU16> {
        self.port(self.services.metrics_port, METRICS_PORT)
    }

    /// What is configured, else kube-proxy's port, which a host that is in no cluster does not open of itself.
    fn port(&self, configured: Option<u16>, of_kube_proxy: u16) -> Option<NonZeroU16> {
        let default = if self.source == Source::Kubernetes { of_kube_proxy } else { 0 };
        NonZeroU16::new(configured.unwrap_or(default))
    }

    fn parse(text: &str) -> Result<Self, serde_yaml::Error> {
        // An empty file, or one of comments alone, is `null` to YAML.
        Ok(serde_yaml::from_str::<Option<Self>>(text)?.unwrap_or_default())
    }

    fn override_with(&mut self, flags: &Overrides) {
        if let Some(name) = &flags.node_name {
            self.node_name.clone_from(name);
        } else if self.node_name.is_empty() {
            self.node_name = nix::unistd::gethostname().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        }
        if let Some(source) = &flags.source {
            self.source.clone_from(source);
        }
        if flags.api_server.is_some() {
            self.api_server.clone_from(&flags.api_server);
        }
        self.metrics_address = flags.metrics_address.or(self.metrics_address);
    }
}

#[cfg(test)]
mod tests;
