// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package tools names the programs that the testbed builds, so that `go mod tidy` keeps what they need.
package tools

import (
	_ "github.com/coredns/coredns"
)
