// Package e2e tests the devcluster executable from outside, as its users see it. The pods it starts run the test's own
// executable, which TestMain turns into a small HTTP server.
package e2e
