package ister

import "fmt"

// Action says what to do about an error.
type Action string

const (
	Retry Action = "retry" // the same again, after a while
	Fix   Action = "fix"   // something in the call is wrong
	Stop  Action = "stop"  // trying again will not help
)

// Error is what a broker answered, or what happened on this side. Code is stable: programs may compare it.
// Compare with errors.As, or with Code.
type Error struct {
	Code   string
	Action Action
	Text   string
}

func (e *Error) Error() string { return fmt.Sprintf("ister: %s: %s", e.Code, e.Text) }

// Is lets errors.Is compare codes: errors.Is(err, &ister.Error{Code: "unknown-topic"}).
func (e *Error) Is(target error) bool {
	other, ok := target.(*Error)
	return ok && other.Code == e.Code
}

func usage(code, format string, args ...any) *Error {
	return &Error{code, Fix, fmt.Sprintf(format, args...)}
}

func lost(format string, args ...any) *Error {
	return &Error{"connection-lost", Retry, fmt.Sprintf(format, args...)}
}

func malformed(format string, args ...any) *Error {
	return &Error{"malformed", Stop, fmt.Sprintf(format, args...)}
}

func closedError(what string) *Error {
	return &Error{"closed", Stop, what + " is closed"}
}
