// SPDX-License-Identifier: Apache-2.0
//! A client of the API server.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::watch::ApiServer;

/// Where the kubelet puts a pod's credentials (KEP-1205).
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// A client with the credentials and the address that the configuration names.
pub(crate) async fn client(server: &ApiServer) -> anyhow::Result<Client> {
    Client::try_from(config(server).await?).context("build the client")
}

/// The API server's address, or its name.
pub(crate) async fn host(server: &ApiServer) -> anyhow::Result<String> {
    let url = config(server).await?.cluster_url;
    Ok(url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned())
}

async fn config(server: &ApiServer) -> anyhow::Result<Config> {
    let mut config = match (&server.kubeconfig, &server.server) {
        (Some(path), _) => from_kubeconfig(path).await?,
        (None, Some(url)) => service_account(url)?,
        (None, None) => Config::incluster().context(
            "neither an address of the api server nor a kubeconfig is configured, and this is not a pod with a service account",
        )?,
    };
    if let Some(url) = &server.server {
        config.cluster_url = parse_url(url)?;
    }
    Ok(config)
}

async fn from_kubeconfig(path: &Path) -> anyhow::Result<Config> {
    let kubeconfig = Kubeconfig::read_from(path).with_context(|| format!("kubeconfig {}", path.display()))?;
    let options = KubeConfigOptions::default();
    Config::from_custom_kubeconfig(kubeconfig, &options).await.with_context(|| format!("kubeconfig {}", path.display()))
}

/// `Config::incluster` wants the address from the environment, where kube-proxy's virtual address stands: it leads nowhere
/// before this agent runs.
fn service_account(url: &str) -> anyhow::Result<Config> {
    let [token, certificate] = ["token", "ca.crt"].map(|name| PathBuf::from(SERVICE_ACCOUNT).join(name));
    for file in [&token, &certificate] {
        std::fs::metadata(file)
            .with_context(|| format!("{}: run as a pod with a service account, or set a kubeconfig", file.display()))?;
    }
    let mut config = Config::new(parse_url(url)?);
    config.root_cert_file = Some(certificate);
    config.auth_info.token_file = Some(token.display().to_string());
    Ok(config)
}

fn parse_url(url: &str) -> anyhow::Result<hyper::http::Uri> {
    let uri: hyper::http::Uri = url.parse().with_context(|| format!("api server address '{url}'"))?;
    let complete = uri.authority().is_some() && matches!(uri.scheme_str(), Some("https" | "http"));
    anyhow::ensure!(complete, "api server address '{url}' is not of the form https://ADDRESS:PORT");
    Ok(uri)
}
