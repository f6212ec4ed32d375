package hosttest

// outboundPromises are about the transactions to other servers.
var outboundPromises []Promise
