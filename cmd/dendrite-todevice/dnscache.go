package main

import (
	"github.com/matrix-org/dendrite/setup/config"
	"github.com/matrix-org/gomatrixserverlib/fclient"
	"github.com/sirupsen/logrus"
)

func newDNSCache(cfg *config.Dendrite) *fclient.DNSCache {
	if !cfg.Global.DNSCache.Enabled {
		return nil
	}
	logrus.Infof("DNS cache enabled (size %d, lifetime %s)", cfg.Global.DNSCache.CacheSize, cfg.Global.DNSCache.CacheLifetime)
	return fclient.NewDNSCache(cfg.Global.DNSCache.CacheSize, cfg.Global.DNSCache.CacheLifetime)
}
