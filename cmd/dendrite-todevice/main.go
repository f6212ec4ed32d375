package main

import (
	_ "github.com/gofrs/flock"
	_ "github.com/hashicorp/golang-lru/v2"
	_ "github.com/lib/pq"
	_ "github.com/matrix-org/dendrite/clientapi"
	_ "github.com/matrix-org/dendrite/setup"
	_ "github.com/matrix-org/dendrite/setup/base"
	_ "github.com/matrix-org/dendrite/setup/mscs"
	_ "github.com/matrix-org/dendrite/syncapi"
	_ "github.com/pressly/goose/v3"
	_ "go.yaml.in/yaml/v3"
	_ "golang.org/x/sync/semaphore"
)

func main() {}
