package hosttest

// inboundPromises are about the transactions that other servers send.
var inboundPromises []Promise
