// SPDX-License-Identifier: Apache-2.0

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Population, kinds};
use crate::apiserver::{Generate, Head};

fn population() -> Population {
    Population {
        here: "node1".to_owned(),
        nodes: 40,
        pods_per_node: 5,
        services: 30,
        endpoints: 4,
        policies: 100,
        everyone: true,
    }
}

fn all() -> Vec<Box<dyn Generate>> {
    let population = population();
    population.check().unwrap();
    vec![
        Box::new(kinds::Pods::new(&population)),
        Box::new(kinds::Namespaces(population.clone())),
        Box::new(kinds::Nodes(population.clone())),
        Box::new(kinds::Services(population.clone())),
        Box::new(kinds::Slices(population.clone())),
        Box::new(kinds::Policies(population)),
    ]
}

#[test]
fn heads_say_what_the_objects_say_and_every_object_is_found() {
    for objects in all() {
        let mut keys = BTreeSet::new();
        for index in 0..objects.count() {
            let object: Value = serde_json::from_str(&objects.text(index)).unwrap();
            let (mut head, mut of_text) = (objects.head(index), Head::of(&object).unwrap());
            head.labels.sort();
            of_text.labels.sort();
            assert_eq!(head, of_text);
            assert_eq!(objects.find(&head.key), Some(index), "{:?}", head.key);
            assert!(keys.insert(head.key));
        }
    }
}

#[test]
fn pods_have_the_size_of_pods_and_addresses_of_their_own() {
    let pods = kinds::Pods::new(&population());
    let mut addresses = BTreeSet::new();
    for index in 0..pods.count() {
        let text = pods.text(index);
        assert!(text.len() >= 5000, "{} bytes", text.len());
        assert!(!text.contains(['@']) || text.matches('@').count() == text.matches("@sha256").count(), "{text}");
        let object: Value = serde_json::from_str(&text).unwrap();
        let ips: Vec<_> = object["status"]["podIPs"].as_array().into_iter().flatten().collect();
        assert_eq!(ips.len(), if object["spec"]["nodeName"] == "node1" { 0 } else { 2 });
        assert!(ips.iter().all(|ip| addresses.insert(ip["ip"].to_string())));
    }
}

#[test]
fn endpoints_are_pods_of_the_services_selector() {
    let population = population();
    let (pods, slices) = (kinds::Pods::new(&population), kinds::Slices(population.clone()));
    for service in 0..population.services {
        let slice: Value = serde_json::from_str(&slices.text(service)).unwrap();
        let addresses: Vec<_> = slice["endpoints"].as_array().unwrap().iter().map(|e| &e["addresses"][0]).collect();
        assert_eq!(addresses.len(), population.endpoints);
        for (pod, address) in population.backends(service).zip(addresses) {
            let object: Value = serde_json::from_str(&pods.text(pod)).unwrap();
            assert_eq!(&object["status"]["podIP"], address);
            assert_eq!(object["metadata"]["labels"]["app"], format!("app-{}", service % population.apps()));
        }
    }
}
