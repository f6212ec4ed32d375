# An image of dendrite-todevice, from the checkout alone: docker build -t dendrite-todevice .
# For element-hq/dendrite: docker build --build-arg HOST=element-hq -t dendrite-todevice .
#
# Without cgo: the binary needs nothing beside itself, so the image has no shell, no libraries and nothing to keep up to
# date. SQLite then runs on a driver that is translated to Go, which is slower; with PostgreSQL nothing changes.
FROM golang:1.26.8-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
# As scripts/release does: the same bytes, with --build-arg VERSION=$(git describe --tags --always --abbrev=12).
ARG VERSION=image
ARG HOST=matrix-org
RUN dir=.; [ "$HOST" = matrix-org ] || dir=hosts/$HOST; \
    CGO_ENABLED=0 go build -C "$dir" -trimpath -buildvcs=false \
    -ldflags "-s -w -buildid= -X github.com/$HOST/dendrite/internal.build=todevice.$VERSION" \
    -o /image/usr/bin/dendrite-todevice ./cmd/dendrite-todevice
# The certificates are for talking to other servers. /tmp is for SQLite, and for media that are being received.
RUN install -D -m 644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt \
 && install -d -m 755 /image/etc/dendrite && install -d -m 700 -o 10001 -g 10001 /image/var/lib/dendrite \
 && install -d -m 1777 /image/tmp

FROM scratch
COPY --from=build /image/ /
USER 10001:10001
# Relative paths in dendrite.yaml begin here.
WORKDIR /var/lib/dendrite
VOLUME /var/lib/dendrite
EXPOSE 8008 8448
# A SIGTERM has the server store what it took. It needs up to 10 seconds for that: docker stop --time 30.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/dendrite-todevice"]
CMD ["-config", "/etc/dendrite/dendrite.yaml"]
